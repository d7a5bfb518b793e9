package main

import (
	"context"
	"errors"
	"os"
)

// mountXFS mounts an XFS in a sparse file: ext4 ends at 16 TiB a file.
func (b *bench) mountXFS() error {
	if b.mounted != "" {
		return nil
	}
	file, dir := b.path("xfs.img"), b.path("xfs")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Mkdir(dir, 0o700)); err != nil {
		return err
	}
	if err := os.Truncate(file, 8<<30); err != nil {
		return err
	}
	ctx := context.Background()
	if err := command(ctx, nil, "mkfs.xfs", "-q", file); err != nil {
		return err
	}
	if err := command(ctx, nil, "mount", "-o", "loop", file, dir); err != nil {
		return err
	}
	b.mounted = dir
	return nil
}

func (b *bench) unmount(ctx context.Context) error {
	if b.mounted == "" {
		return nil
	}
	return command(ctx, nil, "umount", b.mounted)
}
