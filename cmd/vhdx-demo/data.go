package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// file is a file in the volume and what it must contain.
type file struct {
	name string
	size int64
	sum  string
}

// newFile writes a file of random bytes, syncs it and its directory, and
// returns its checksum: from here on no power cut may change it.
func newFile(dir, name string, size int64, seed uint64) (file, error) {
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return file{}, err
	}
	defer f.Close()
	h := sha256.New()
	src := io.LimitReader(rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}), size)
	if _, err := io.Copy(io.MultiWriter(f, h), src); err != nil {
		return file{}, fmt.Errorf("write %s: %w", name, err)
	}
	if err := f.Sync(); err != nil {
		return file{}, fmt.Errorf("sync %s: %w", name, err)
	}
	if err := f.Close(); err != nil {
		return file{}, fmt.Errorf("close %s: %w", name, err)
	}
	return file{name, size, hex.EncodeToString(h.Sum(nil))}, syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// write fills the volume with files of many sizes.
func (d *demo) write(ctx context.Context) (string, error) {
	var total int64
	for i := range 30 {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		size := int64(1+i*i*i) * 997 // 997 bytes to 23 MiB, no multiple of anything
		f, err := newFile(d.v.Target, fmt.Sprintf("file-%02d", i), size, uint64(i))
		if err != nil {
			return "", err
		}
		d.files = append(d.files, f)
		total += size
	}
	text, err := sizes(d.image)
	if err != nil {
		return "", err
	}
	d.show("%d files, %.1f MiB, each synced when written", len(d.files), float64(total)/mib)
	d.show("the image is now %s", text)
	return fmt.Sprintf("%d files, %.0f MiB, SHA-256 kept", len(d.files), float64(total)/mib), nil
}

// verify reads every file from the volume.
func (d *demo) verify(ctx context.Context) (string, error) {
	for _, want := range d.files {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		f, err := os.Open(filepath.Join(d.v.Target, want.name))
		if err != nil {
			return "", fmt.Errorf("MISMATCH: %w", err)
		}
		h := sha256.New()
		n, err := io.Copy(h, f)
		_ = f.Close() // only read
		if err != nil {
			return "", fmt.Errorf("read %s: %w", want.name, err)
		}
		got := hex.EncodeToString(h.Sum(nil))
		if err := d.must(n == want.size && got == want.sum, "%s: %d bytes with SHA-256 %s, want %d with %s", want.name, n, got, want.size, want.sum); err != nil {
			return "", err
		}
	}
	d.show("%d of %d files have the checksum they had when they were written", len(d.files), len(d.files))
	return fmt.Sprintf("%d of %d files identical", len(d.files), len(d.files)), nil
}

// verifyAndWrite shows that the volume can be used after all that.
func (d *demo) verifyAndWrite(ctx context.Context) (string, error) {
	note, err := d.verify(ctx)
	if err != nil {
		return "", err
	}
	f, err := newFile(d.v.Target, "one-more", 10*mib+1, 99)
	if err != nil {
		return "", err
	}
	d.files = append(d.files, f)
	return note, nil
}
