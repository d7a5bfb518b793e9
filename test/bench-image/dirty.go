package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/disk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// makeDirty leaves an image as a power cut would, with a log of so many pages.
// All that a replay writes lies before the payload; that part is also put
// aside, so that [restore] can bring the power cut back.
func makeDirty(path string, logSize int64, pages int) error {
	live := path + "-live"
	const perPage = 512 // blocks of 1 MiB whose entries share a page
	if _, err := vhdx.Create(live, vhdx.CreateOptions{Size: int64(pages+2) * perPage * mib, BlockSize: mib, LogSize: logSize}); err != nil {
		return err
	}
	im, err := vhdx.OpenPath(live, vhdx.OpenOptions{GrowthStep: 1 << 30})
	if err != nil {
		return err
	}
	data := make([]byte, 4096)
	data[0] = 1
	for n := 0; n < pages && err == nil; n++ {
		_, err = im.WriteAt(data, int64(n)*perPage*mib)
	}
	if err == nil {
		err = im.Flush()
	}
	if err == nil {
		err = copySparse(context.Background(), live, path)
	}
	if err = errors.Join(err, im.Close(), os.Remove(live)); err != nil {
		return err
	}
	if err := checkDirty(path, pages); err != nil {
		return err
	}
	return copyHead(path, path+"-head", headLength(logSize, int64(pages+2)*perPage))
}

// headLength is that of header section, log, metadata and block table.
func headLength(logSize, blocks int64) int64 {
	const ratio = 512 << 23 / mib
	table := (8*(blocks+blocks/ratio) + mib - 1) / mib * mib
	return mib + logSize + mib + table
}

// copyHead copies the first n bytes of a file over those of another.
func copyHead(from, to string, n int64) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return errors.Join(err, src.Close())
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{dst}, io.LimitReader(src, n), make([]byte, 1<<18))
	return errors.Join(err, dst.Sync(), dst.Close(), src.Close())
}

// restore makes an image of makeDirty dirty again after its log was replayed.
func restore(path string) error {
	head, err := os.Stat(path + "-head")
	if err != nil {
		return err
	}
	return copyHead(path+"-head", path, head.Size())
}

// checkDirty makes sure that a log is what the line says.
func checkDirty(path string, pages int) error {
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	replay := im.Info().Replay
	if err := im.Close(); err != nil {
		return err
	}
	if replay.Pages < pages {
		return fmt.Errorf("%s: %d pages to replay, want %d", path, replay.Pages, pages)
	}
	return nil
}

// copySparse copies a file that somebody may have open.
func copySparse(ctx context.Context, from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	of, err := vhdx.NewOSFile(f, vhdx.FileOptions{ReadOnly: true, Buffered: true, NoLock: true})
	if err != nil {
		return errors.Join(err, f.Close())
	}
	size, err := of.Size()
	if err != nil {
		return errors.Join(err, of.Close())
	}
	t, err := disk.CreateFile(to, size)
	if err != nil {
		return errors.Join(err, of.Close())
	}
	if _, err := disk.Copy(ctx, t, sized{of, size}, disk.Options{Blank: true, Unit: 4096}); err != nil {
		return errors.Join(err, t.Abort(), of.Close())
	}
	return errors.Join(t.Publish(true), of.Close())
}

// sized is a file of a size.
type sized struct {
	*vhdx.OSFile
	size int64
}

func (s sized) Size() int64 { return s.size }

func (s sized) NextData(off int64) (start, end int64, err error) {
	if start, err = s.OSFile.NextData(off, s.size); err != nil || start >= s.size {
		return s.size, s.size, err
	}
	end, err = s.NextHole(start, s.size)
	return start, end, err
}
