package main

import (
	"context"
	"errors"
	"os"
	"time"
)

// mountXFS mounts an XFS in a sparse file: ext4 ends at 16 TiB a file.
func (b *bench) mountXFS(ctx context.Context) error {
	if b.mounted != "" {
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("mounting an XFS needs root")
	}
	file, dir := b.path("xfs.img"), b.path("xfs")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Mkdir(dir, 0o700)); err != nil {
		return err
	}
	if err := os.Truncate(file, 8<<30); err != nil {
		return err
	}
	if err := command(ctx, "mkfs.xfs", "-q", file); err != nil {
		return err
	}
	// The mount takes the loop device away with it at its end.
	if err := command(ctx, "mount", "-o", "loop", file, dir); err != nil {
		return err
	}
	b.mounted = dir
	return nil
}

// unmount also waits for who may still have a file open there.
func (b *bench) unmount(ctx context.Context) (err error) {
	if b.mounted == "" {
		return nil
	}
	for range 50 {
		if err = command(ctx, "umount", b.mounted); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}
