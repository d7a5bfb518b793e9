package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// importChain is the import of a chain of three. In one of the two whoever opens
// the volume after an interruption ends it, in the other the repeated import does.
func importChain(name string, look func(context.Context, *Set, string) error) scenario {
	return scenario{
		name: name, long: true,
		prepare: func(_ context.Context, s *Set) (string, error) { return "", makeChain(sourceIn(s), 3) },
		run: func(ctx context.Context, s *Set, id string) error {
			return patiently(func() error { return importScenario.run(ctx, s, id) })
		},
		interrupted: func(ctx context.Context, s *Set, _ string) error {
			if _, ok := victim(ctx, s); ok {
				return look(ctx, s, "")
			}
			return fileHolds(sourceIn(s), 3) // under its old name, and so do its parents
		},
		done: func(ctx context.Context, s *Set, _ string) error {
			v, ok := victim(ctx, s)
			if !ok || v.Use != UseMounted || v.Size != testDisk || v.Params.FSType != "xfs" || v.Layers != 2 {
				return fmt.Errorf("the volume is %+v", v)
			}
			for i := range 3 {
				if _, err := os.Lstat(chainFile(sourceIn(s), 3, i)); !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("file %d still has its old name: %w", i, err)
				}
			}
			return volumeHolds(ctx, s, v.ID, 3)
		},
	}
}

var importChainScenarios = []scenario{
	importChain("import chain", holds(3)),
	importChain("import chain, repeated", anything),
}

func init() { scenarios = append(scenarios, importChainScenarios...) }

// chainFile is the ith file from the bottom up of a chain of n, whose top is file.
func chainFile(file string, n, i int) string {
	if i == n-1 {
		return file
	}
	return fmt.Sprintf("%s-%d.avhdx", strings.TrimSuffix(file, ".vhdx"), i)
}

// makeChain makes a chain of n files, each with its text.
func makeChain(file string, n int) error {
	for i := range n {
		at := chainFile(file, n, i)
		err := patiently(func() error {
			o := vhdx.ChildOptions{BlockSize: testBlock << (i % 2), Absolute: true}
			if i > 0 {
				_, err := vhdx.CreateChild(at, chainFile(file, n, i-1), o)
				return err
			}
			_, err := vhdx.Create(at, vhdx.CreateOptions{Size: testDisk, BlockSize: testBlock})
			return err
		})
		if err == nil {
			err = patiently(func() error { return writeFileText(at, i+1) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// patiently waits for what a process that another test has just started has open
// until its exec.
func patiently(do func() error) error {
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if err := do(); !errors.Is(err, vhdx.ErrInUse) && !errors.Is(err, ErrInUse) || time.Now().After(until) {
			return err
		}
	}
}

func writeFileText(file string, n int) error {
	im, err := vhdx.OpenPath(file, vhdx.OpenOptions{Parents: vhdx.ParentsIn(filepath.Dir(file))})
	if err != nil {
		return err
	}
	_, err = im.WriteAt([]byte(text(n)), 0)
	if err == nil {
		_, err = im.WriteAt([]byte(text(n)), int64(n)*512<<10)
	}
	return errors.Join(err, im.Close())
}

func fileHolds(file string, n int) error {
	im, err := vhdx.OpenPath(file, vhdx.OpenOptions{ReadOnly: true, Parents: vhdx.ParentsIn(filepath.Dir(file))})
	if err != nil {
		return err
	}
	return errors.Join(checkText(im, n), im.Close())
}

// An imported chain lives as any other volume: what it stood on is merged in the
// background, and goes with the last that needs it.
func TestImportChainLife(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	if err := makeChain(sourceIn(s), 3); err != nil {
		t.Fatal(err)
	}
	v, err := s.Import(ctx, Import{File: sourceIn(s), Name: "victim", FSType: "xfs"})
	if err != nil {
		t.Fatal(err)
	}
	audit(t, p)
	if err := importChainScenarios[0].done(ctx, s, ""); err != nil {
		t.Fatal(err)
	}
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		audit(t, p)
	}
	_, err = take(ctx, s, v.ID, "s3")
	must(err, writeText(ctx, s, v.ID, 4), volumeHolds(ctx, s, v.ID, 4), snapshotHolds("s3", 3)(ctx, s, ""))
	c, err := s.CreateVolume(ctx, Spec{Name: "clone", Size: testDisk, Source: Source{Snapshot: snapshotID(t, p, "s3")}})
	must(err, volumeHolds(ctx, s, c.ID, 3))
	_, err = s.Resize(ctx, v.ID, 2*testDisk)
	must(err)
	_, err = s.Tend(ctx, v.ID, Tender{})
	must(err, volumeHolds(ctx, s, v.ID, 4), volumeHolds(ctx, s, c.ID, 3))
	must(s.DeleteVolume(ctx, v.ID), snapshotHolds("s3", 3)(ctx, s, ""))
	must(untake(ctx, s, "s3"), volumeHolds(ctx, s, c.ID, 3), s.DeleteVolume(ctx, c.ID))
	for range 3 {
		must(s.Untended(ctx, func(id string) error { _, err := s.Tend(ctx, id, Tender{}); return err }))
	}
	if left := files(t, p); len(left) != 0 {
		t.Fatalf("left: %v", left)
	}
}

func snapshotID(t *testing.T, p *Pool, name string) string {
	t.Helper()
	r, err := p.readSnapshot(dirSnapshots, hashOf(name))
	if err != nil {
		t.Fatal(err)
	}
	return r.ID
}

// A chain of all kinds: a fixed base, a larger disk on it, and on top an image that a
// power cut has left with a log.
func TestImportChainOfAllKinds(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	top := sourceIn(s)
	_, err := vhdx.Create(chainFile(top, 3, 0), vhdx.CreateOptions{Size: testDisk, BlockSize: testBlock, Fixed: true})
	noError(t, err)
	noError(t, writeFileText(chainFile(top, 3, 0), 1))
	_, err = vhdx.CreateChild(chainFile(top, 3, 1), chainFile(top, 3, 0), vhdx.ChildOptions{Size: testDisk + 3<<20, BlockSize: 4 * testBlock})
	noError(t, err)
	noError(t, writeFileText(chainFile(top, 3, 1), 2))
	_, err = vhdx.CreateChild(top, chainFile(top, 3, 1), vhdx.ChildOptions{BlockSize: testBlock})
	noError(t, err)
	im, err := vhdx.OpenPath(top, vhdx.OpenOptions{Parents: vhdx.ParentsIn(filepath.Dir(top))})
	noError(t, err)
	for _, off := range []int64{0, 3 * 512 << 10} {
		_, err := im.WriteAt([]byte(text(3)), off)
		noError(t, err)
	}
	noError(t, im.Flush())
	cut, err := os.ReadFile(top)
	noError(t, errors.Join(err, im.Close(), os.WriteFile(top, cut, 0o600)))
	if infoOf(t, top).Replay.Entries == 0 {
		t.Fatal("it has no log to replay")
	}
	v, err := s.Import(ctx, Import{File: top, Name: "kinds"})
	if err != nil || v.Size != testDisk+3<<20 || v.Layers != 2 || v.Params.Fixed {
		t.Fatalf("%+v, %v", v, err)
	}
	noError(t, volumeHolds(ctx, s, v.ID, 3))
	_, err = s.Tend(ctx, v.ID, Tender{})
	noError(t, errors.Join(err, volumeHolds(ctx, s, v.ID, 3)))
	if v, err = s.Volume(ctx, v.ID); err != nil || v.Layers != 1 {
		t.Errorf("not merged: %+v, %v", v, err)
	}
	audit(t, p)
}

// What an import changes of a layer is the path in its locator and nothing else:
// the lowest file stays as it is, bit by bit.
func TestImportChainChangesOnlyLinks(t *testing.T) {
	s, p := newSet(t)
	if err := makeChain(sourceIn(s), 3); err != nil {
		t.Fatal(err)
	}
	var before []vhdx.Info
	for i := range 3 {
		before = append(before, infoOf(t, chainFile(sourceIn(s), 3, i)))
	}
	base, err := os.ReadFile(chainFile(sourceIn(s), 3, 0))
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Import(t.Context(), Import{File: sourceIn(s), Name: "victim"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.live(mustParse(t, v.ID))
	if err != nil {
		t.Fatal(err)
	}
	for i, image := range []string{r.Layers[0].Image, r.Layers[1].Image, r.Image} {
		after := infoOf(t, filepath.Join(p.tree.Name(), imagePath(image)))
		if after.DataWriteGUID != before[i].DataWriteGUID || after.DiskID != before[i].DiskID || after.Replay.Entries > 0 || after.AllocatedBlocks != before[i].AllocatedBlocks {
			t.Errorf("file %d: before %+v, after %+v", i, before[i], after)
		}
	}
	now, err := os.ReadFile(filepath.Join(p.tree.Name(), imagePath(r.Layers[0].Image)))
	if err != nil || !bytes.Equal(now, base) {
		t.Errorf("the lowest file has changed: %v", err)
	}
	// By their own words, too, the images lead to each other.
	im, err := vhdx.OpenPath(v.Image, vhdx.OpenOptions{ReadOnly: true, Parents: vhdx.ParentsIn(p.tree.Name())})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(checkText(im, 3), im.Close()); err != nil {
		t.Fatal(err)
	}
}

func infoOf(t *testing.T, file string) vhdx.Info {
	t.Helper()
	im, err := vhdx.OpenPath(file, vhdx.OpenOptions{ReadOnly: true, NoParents: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	return im.Info()
}
