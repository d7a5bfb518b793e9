package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// inner is the part inside of the namespaces.
type inner struct {
	options
	Cgroup     string
	Token      string
	kubeconfig string
	started    time.Time
}

// runInner makes the cluster and runs the command in it.
func runInner() (int, error) {
	in := &inner{started: time.Now()}
	if len(os.Args) != 2 {
		return 1, errors.New("it starts itself under this name")
	}
	if err := json.Unmarshal([]byte(os.Args[1]), &in.options); err != nil {
		return 1, err
	}
	in.Cgroup = filepath.Base(in.Scratch)
	in.Token = in.Cgroup // nobody outside of the namespaces reaches the apiserver
	in.kubeconfig = filepath.Join(in.Scratch, "kubeconfig")
	for _, step := range []func(context.Context) error{in.mounts, in.network, in.cgroups, in.configure, in.controlPlane, in.snapshots, in.install} {
		if err := step(context.Background()); err != nil {
			in.say("FAILED: %v", err)
			return 1, errors.New("the cluster did not come up; the logs are in " + in.Logs)
		}
	}
	return in.command()
}

// command runs what the user wants. Ctrl-C is the command's: a shell goes on,
// anything else ends by it.
func (in *inner) command() (int, error) {
	signal.Ignore(syscall.SIGINT, syscall.SIGQUIT)
	cmd := exec.Command(in.Command[0], in.Command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(in.environment(),
		"CLUSTER_PLUGIN="+filepath.Join(in.Plugin, "vhdx-csi"), "CLUSTER_LOGS="+in.Logs, "CLUSTER_POOL="+poolDir, "CLUSTER_CGROUP="+in.Cgroup, `PS1=(cluster) \w # `)
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() {
			return 128 + int(w.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// environment has the cluster's programs first, and kubectl on top of them.
func (in *inner) environment() []string {
	return append(os.Environ(), "KUBECONFIG="+in.kubeconfig, "PATH="+in.Bin+":"+os.Getenv("PATH"))
}

func (in *inner) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "[cluster %5.1fs] %s\n", time.Since(in.started).Seconds(), fmt.Sprintf(format, args...))
}

// run runs a program to its end.
func (in *inner) run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = in.environment()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	return nil
}

// output runs kubectl and gives what it prints.
func (in *inner) output(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(in.Bin, "kubectl"), args...)
	cmd.Env = in.environment()
	return cmd.Output()
}

func (in *inner) kubectl(ctx context.Context, args ...string) error {
	return in.run(ctx, filepath.Join(in.Bin, "kubectl"), args...)
}

// await tries until it works.
func (in *inner) await(ctx context.Context, what string, limit time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		err := try(ctx)
		if err == nil {
			in.say("%s", what)
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no %s within %v: %w", what, limit, last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
