package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/fuseloop"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

type attachOptions struct {
	readOnly   bool
	background bool
	runDir     string
}

const defaultRunDir = "/run/vhdxctl"

func (a *app) attachCommand(ctx context.Context) *cobra.Command {
	var o attachOptions
	cmd := &cobra.Command{
		Use:   "attach PATH",
		Short: "Make a block device of an image",
		Long: `Make a block device of an image, as the node plugin does, through FUSE and a loop
device: it needs root and no kernel module that is not always there. The name of the device is
printed when it can be used.

The device is there as long as the command runs: end it with Ctrl-C, or with
vhdxctl detach. With --background it detaches itself from the terminal. A device
that is mounted or open stays, and its server with it.

If the server is killed, every write that the device had flushed is safe, and so
are all that were answered: without another process to keep them, changes of the
block table go to the log before the answer. The device itself is lost then;
vhdxctl detach cleans up.`,
		Example: `  vhdxctl attach --background disk.vhdx
  vhdxctl attach --read-only snapshot.vhdx
  mount $(vhdxctl attach --background disk.vhdx) /mnt`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if os.Geteuid() != 0 {
				return errors.New("attach needs root, for loop devices")
			}
			if o.background {
				return a.attachBackground(args[0], o)
			}
			return a.attach(ctx, args[0], o)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.readOnly, "read-only", "r", false, "a read-only device")
	f.BoolVarP(&o.background, "background", "b", false, "return when the device is there, and go on serving")
	f.StringVar(&o.runDir, "run-dir", defaultRunDir, "`directory` for what detach needs to know")
	return cmd
}

// attach serves the image until a signal, a request to detach or the end of
// the device.
func (a *app) attach(ctx context.Context, path string, o attachOptions) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	im, err := a.openImage(path, vhdx.OpenOptions{ReadOnly: o.readOnly})
	if err != nil {
		return err
	}
	s, err := takeSeat(o.runDir, path)
	if err != nil {
		return errors.Join(err, im.Close())
	}
	// Signals are looked after here.
	tell, err := a.serveImage(context.WithoutCancel(ctx), signals, s, im)
	err = errors.Join(err, im.Close())
	s.close()
	tell(err)
	return err
}

// serveImage returns when the device is gone, with what is to be called once
// the image is closed too.
func (a *app) serveImage(ctx context.Context, signals <-chan os.Signal, s *seat, im *vhdx.Image) (tell func(error), err error) {
	nobody := func(error) {}
	attacher := fuseloop.New(fuseloop.Options{Note: func(_, text string) { fmt.Fprintf(a.errOut, "note: %s\n", text) }})
	if err := attacher.Teardown(ctx, s.id()); err != nil { // what a killed server left
		return nobody, err
	}
	d, err := attacher.Attach(ctx, blockdev.Config{ID: s.id(), Image: &committedImage{Image: im}})
	if err != nil {
		return nobody, err
	}
	err = s.publish(attachedResult{Image: s.path, Device: d.Path(), ReadOnly: im.ReadOnly(), PID: os.Getpid()})
	if err != nil {
		return nobody, errors.Join(err, d.Detach(ctx))
	}
	a.print(s.state, func(w io.Writer) { fmt.Fprintln(w, d.Path()) })
	for {
		select {
		case <-d.Done():
			return nobody, d.Err()
		case <-signals:
			tell = nobody
		case tell = <-s.requests:
		}
		err := detachPatiently(ctx, d)
		if !errors.Is(err, blockdev.ErrBusy) {
			return tell, err
		}
		a.fail(err) // it stays, and so does this process
		tell(err)
	}
}

// detachPatiently gives those who have just used the device (udev, mostly) a
// moment to close it.
func detachPatiently(ctx context.Context, d blockdev.Device) error {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err := d.Detach(ctx); !errors.Is(err, blockdev.ErrBusy) || time.Now().After(end) {
			return err
		}
	}
}
