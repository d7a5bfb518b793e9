package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/disk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const (
	partialSuffix = ".partial"
	noteSuffix    = ".partial.json"
	// saveEvery is how many bytes are read between two notes, each of which
	// costs a flush.
	saveEvery = 512 << 20
)

var (
	errKept        = errors.New("interrupted")
	errOtherSource = errors.New("not what the kept copy was made of")
)

// note says how far a kept copy is safe, and of what it is one.
type note struct {
	Source identity `json:"source"`
	// Format and Options of the target.
	Format  string   `json:"format"`
	Options settings `json:"options"`
	// Done: the copy holds, durably, all of the source before this offset.
	Done int64 `json:"done"`
}

// settings are the options of a target, to be the same when the copy goes on.
type settings struct {
	Fixed     bool  `json:"fixed"`
	BlockSize int64 `json:"blockSize"`
	LogSize   int64 `json:"logSize"`
}

// identity tells one state of a source from every other.
type identity struct {
	Path   string   `json:"path"`
	Format string   `json:"format"`
	Size   int64    `json:"size"`
	Files  []string `json:"files"` // of each file it is read from: device, inode, size, times
	GUIDs  []string `json:"guids"`
}

// identify fails for what cannot be told to have changed.
func (c *conversion) identify(src opened) (identity, error) {
	if src.device {
		return identity{}, fmt.Errorf("--resume: %s: a block device does not tell whether it has changed", src.name)
	}
	path, err := filepath.Abs(c.from)
	if err != nil {
		return identity{}, err
	}
	id := identity{Path: path, Format: src.format, Size: src.Size()}
	for _, file := range layerPaths(src) {
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil {
			return id, &os.PathError{Op: "stat", Path: file, Err: err}
		}
		id.Files = append(id.Files, fmt.Sprintf("%d:%d, %d bytes, %d.%09d", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec))
	}
	if src.image != nil {
		for _, l := range src.image.Layers() {
			id.GUIDs = append(id.GUIDs, l.FileWriteGUID, l.DataWriteGUID)
		}
	}
	return id, nil
}

// layerPaths are the files that a source is read from.
func layerPaths(src opened) []string {
	if src.image == nil {
		return []string{src.name}
	}
	var paths []string
	for _, l := range src.image.Layers() {
		paths = append(paths, l.File)
	}
	return paths
}

// resumable copies to TARGET.partial and notes how far it is safe. The note is
// there before the copy is, and says nothing that is not durable.
func (c *conversion) resumable(ctx context.Context, src opened) (disk.Stats, error) {
	id, err := c.identify(src)
	if err != nil {
		return disk.Stats{}, err
	}
	n := note{Source: id, Format: c.format, Options: settings{c.o.create.Fixed, c.o.create.BlockSize, c.o.create.LogSize}}
	if err := c.readNote(&n); err != nil {
		return disk.Stats{}, err
	}
	c.resumedAt = n.Done
	t, err := c.openPartial(n, src)
	if err != nil {
		return disk.Stats{}, err
	}
	bar := c.app.progress(ctx, c.o.quiet, "converting")
	o := c.copyOptions(bar)
	o.Blank, o.From, o.Interval = true, n.Done, saveEvery
	o.Saved = func(upTo int64) error {
		n.Done = upTo
		return c.writeNote(n)
	}
	stats, err := disk.Copy(ctx, t, src.source, o)
	bar.end()
	err = errors.Join(err, t.Close())
	if err == nil && c.o.noSparse {
		err = disk.Fill(c.to + partialSuffix)
	}
	if err != nil {
		return stats, fmt.Errorf("%s: %w at %s of %s: %w", c.to, errKept, formatSize(n.Done), formatSize(src.Size()), err)
	}
	return stats, c.nameTarget()
}

// openPartial opens the kept copy, or begins one.
func (c *conversion) openPartial(n note, src opened) (existing, error) {
	path := c.to + partialSuffix
	if n.Done == 0 {
		if err := c.writeNote(n); err != nil {
			return nil, err
		}
		if err := c.beginPartial(path, src); err != nil {
			return nil, err
		}
	}
	if c.format == formatRaw {
		return disk.OpenFile(path, true)
	}
	return vhdx.OpenPath(path, vhdx.OpenOptions{GrowthStep: 256 << 20})
}

func (c *conversion) beginPartial(path string, src opened) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if c.format == formatRaw {
		f, err := disk.CreateFile(path, src.Size())
		if err != nil {
			return err
		}
		return f.Publish(false)
	}
	c.sector = int64(max(src.sector(), 512))
	created, err := vhdx.Create(path, c.createOptions(src.Size(), src.sector()))
	c.notes = append(c.notes, created.Adjusted...)
	return err
}

// readNote sets n.Done to that of the note of an earlier attempt, if there is one of the same.
func (c *conversion) readNote(n *note) error {
	_, statErr := os.Lstat(c.to + partialSuffix)
	data, err := os.ReadFile(c.to + noteSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		if statErr == nil {
			return fmt.Errorf("%s: there is no %s beside it that would say what it is; remove it, or choose another target", c.to+partialSuffix, filepath.Base(c.to+noteSuffix))
		}
		return nil
	}
	if err != nil {
		return err
	}
	var old note
	if err := json.Unmarshal(data, &old); err != nil {
		return fmt.Errorf("%s: %w: %w", c.to+noteSuffix, errOtherSource, err)
	}
	if errors.Is(statErr, fs.ErrNotExist) {
		return nil // it has been removed, or renamed just before a crash
	}
	done := old.Done
	if old.Done = n.Done; !reflect.DeepEqual(old, *n) {
		return fmt.Errorf("%s: %w: it was made of %s, %s, in the state {%v %v}, with %+v; now it would be %s, %s, {%v %v}, with %+v",
			c.to+partialSuffix, errOtherSource, old.Source.Path, old.Format, old.Source.Files, old.Source.GUIDs, old.Options,
			n.Source.Path, n.Format, n.Source.Files, n.Source.GUIDs, n.Options)
	}
	if done < 0 || done > n.Source.Size {
		return fmt.Errorf("%s: %w: done %d of %d", c.to+noteSuffix, errOtherSource, done, n.Source.Size)
	}
	n.Done = done
	return nil
}

// writeNote replaces the note in one step.
func (c *conversion) writeNote(n note) error {
	data, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return err
	}
	d, err := vhdx.NewDraft(c.to + noteSuffix)
	if err != nil {
		return err
	}
	_, err = d.File().Write(append(data, '\n'))
	if err == nil {
		err = d.Publish(true)
	}
	return errors.Join(err, d.Close())
}

// nameTarget gives the complete copy its name and removes the note.
func (c *conversion) nameTarget() error {
	unlock, err := c.lockReplaced()
	if err != nil {
		return err
	}
	defer unlock()
	if err := vhdx.Rename(c.to+partialSuffix, c.to, c.o.overwrite); err != nil {
		return err
	}
	return os.Remove(c.to + noteSuffix)
}
