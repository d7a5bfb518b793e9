package pool

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

func TestImportChainRefuses(t *testing.T) {
	for _, tc := range []struct {
		what    string
		prepare func(t *testing.T, s *Set, top string)
		parents string // "": the chain's directory
		want    []error
		text    string
	}{
		{"parent missing", func(t *testing.T, _ *Set, top string) { remove(t, chainFile(top, 3, 0)) }, "", []error{ErrInvalid, vhdx.ErrParentMissing}, "disk-0.avhdx"},
		{"parent written since", func(t *testing.T, _ *Set, top string) { noError(t, writeFileText(chainFile(top, 3, 0), 9)) }, "", []error{ErrInvalid, vhdx.ErrParentMismatch}, "backup"},
		{"cycle", func(t *testing.T, _ *Set, top string) {
			remove(t, chainFile(top, 3, 0))
			noError(t, os.Symlink(filepath.Base(top), chainFile(top, 3, 0)))
		}, "", []error{ErrInvalid}, "a cycle"},
		{"parent outside", func(*testing.T, *Set, string) {}, "empty", []error{ErrInvalid, vhdx.ErrParentRefused}, "disk-1.avhdx"},
		{"parent behind a link that leads out", func(t *testing.T, _ *Set, top string) {
			out := filepath.Join(filepath.Dir(filepath.Dir(top)), "out.vhdx")
			noError(t, os.Rename(chainFile(top, 3, 0), out))
			noError(t, os.Symlink(out, chainFile(top, 3, 0)))
		}, "", []error{ErrInvalid, vhdx.ErrParentRefused}, "disk-0.avhdx"},
		{"parent in use", func(t *testing.T, _ *Set, top string) {
			im, err := vhdx.OpenPath(chainFile(top, 3, 0), vhdx.OpenOptions{ReadOnly: true})
			noError(t, err)
			t.Cleanup(func() { im.Close() })
		}, "", []error{ErrInUse}, "disk-0.avhdx"},
		{"parent not closed", func(t *testing.T, _ *Set, top string) { leaveLog(t, chainFile(top, 3, 0), top) }, "", []error{ErrInvalid}, "vhdxctl replay"},
		{"parent with another name", func(t *testing.T, s *Set, top string) {
			noError(t, os.Link(chainFile(top, 3, 1), filepath.Join(s.Pools()[0].tree.Name(), ".nfs-other")))
		}, "", []error{ErrInvalid}, "other names"},
		{"other sectors", func(t *testing.T, _ *Set, top string) { otherSectors(t, top) }, "", []error{ErrInvalid, vhdx.ErrParentMismatch}, "sectors"},
		{"another child of the base", func(t *testing.T, _ *Set, top string) {
			_, err := vhdx.CreateChild(filepath.Join(filepath.Dir(top), "second.vhdx"), chainFile(top, 3, 0), vhdx.ChildOptions{})
			noError(t, err)
		}, "", []error{ErrInvalid, errLeftBehind}, "second.vhdx stands on"},
		{"a child of the top", func(t *testing.T, _ *Set, top string) {
			_, err := vhdx.CreateChild(filepath.Join(filepath.Dir(top), "above.avhdx"), top, vhdx.ChildOptions{})
			noError(t, err)
		}, "", []error{ErrInvalid, errLeftBehind}, "above.avhdx stands on"},
		{"who may be a child", func(t *testing.T, _ *Set, top string) {
			noError(t, os.WriteFile(filepath.Join(filepath.Dir(top), "broken.vhdx"), append([]byte("vhdxfile"), make([]byte, 1<<20)...), 0o600))
		}, "", []error{ErrInvalid, errLeftBehind}, "broken.vhdx"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			s, p := newSet(t)
			dir := chainDir(t, p)
			top := filepath.Join(dir, "disk.vhdx")
			noError(t, makeChain(top, 3))
			tc.prepare(t, s, top)
			imp := Import{File: top, Name: "v"}
			if tc.parents != "" {
				imp.Parents = filepath.Join(dir, tc.parents)
				noError(t, os.Mkdir(imp.Parents, 0o700))
			}
			_, err := s.Import(t.Context(), imp)
			wantErr(t, tc.what, err, tc.want[0], tc.text)
			for _, want := range tc.want {
				if !errors.Is(err, want) {
					t.Errorf("%v is no %v", err, want)
				}
			}
			_, err = p.recountNow(t.Context())
			noError(t, err)
			audit(t, p)
			if left := files(t, p); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
			if _, err := os.Stat(top); err != nil {
				t.Error(err)
			}
		})
	}
}

// chainDir is a directory on the pool's filesystem that a pool leaves alone.
func chainDir(t *testing.T, p *Pool) string {
	t.Helper()
	dir := p.tree.Name() + "-incoming/chain"
	noError(t, os.MkdirAll(dir, 0o700))
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(dir)) })
	return dir
}

func remove(t *testing.T, file string) {
	t.Helper()
	noError(t, os.Remove(file))
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// leaveLog makes a base that a power cut has caught, and its chain anew.
func leaveLog(t *testing.T, base, top string) {
	t.Helper()
	im, err := vhdx.OpenPath(base, vhdx.OpenOptions{})
	noError(t, err)
	_, err = im.WriteAt([]byte(text(1)), 5<<20)
	noError(t, errors.Join(err, im.Flush()))
	b, err := os.ReadFile(base)
	noError(t, errors.Join(err, im.Close()))
	noError(t, os.WriteFile(base, b, 0o600))
	noError(t, errors.Join(os.Remove(top), os.Remove(chainFile(top, 3, 1))))
	_, err = vhdx.CreateChild(top, base, vhdx.ChildOptions{})
	noError(t, err)
}

// otherSectors puts a base with sectors of 4096 bytes, and otherwise as a child
// expects it, in the place of the real one.
func otherSectors(t *testing.T, top string) {
	t.Helper()
	base := chainFile(top, 3, 0)
	_, guid := dataWriteGUID(t, base)
	noError(t, os.Remove(base))
	_, err := vhdx.Create(base, vhdx.CreateOptions{Size: testDisk, BlockSize: testBlock, LogicalSectorSize: 4096})
	noError(t, err)
	at, _ := dataWriteGUID(t, base)
	f, err := os.OpenFile(base, os.O_RDWR, 0)
	noError(t, err)
	header := make([]byte, 4096)
	_, err = f.ReadAt(header, at)
	copy(header[32:48], guid)
	binary.LittleEndian.PutUint32(header[4:], 0)
	binary.LittleEndian.PutUint32(header[4:], crc32.Checksum(header, crc32.MakeTable(crc32.Castagnoli)))
	_, werr := f.WriteAt(header, at)
	noError(t, errors.Join(err, werr, f.Close()))
}

// dataWriteGUID reads the header that counts.
func dataWriteGUID(t *testing.T, file string) (at int64, guid []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	noError(t, err)
	at = 64 << 10
	if binary.LittleEndian.Uint64(b[128<<10+8:]) > binary.LittleEndian.Uint64(b[at+8:]) {
		at = 128 << 10
	}
	return at, b[at+32 : at+48]
}

// A chain that is too deep, and one whose parent a volume has.
func TestImportChainBounds(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	dir := chainDir(t, p)
	top := filepath.Join(dir, "deep.vhdx")
	noError(t, makeBlankChain(top, maxLayers+2))
	_, err := s.Import(ctx, Import{File: top, Name: "deep"})
	wantErr(t, "too deep", err, ErrInvalid, "merge")
	below := chainFile(top, maxLayers+2, maxLayers)
	remove(t, top)
	v, err := s.Import(ctx, Import{File: below, Name: "deep"})
	if errors.Is(err, ErrBusy) { // it took longer than the lock is trusted; what is linked stays so
		v, err = s.Import(ctx, Import{File: below, Name: "deep"})
	}
	if err != nil || v.Layers != maxLayers {
		t.Fatalf("%+v, %v", v, err)
	}
	audit(t, p)
	noError(t, s.DeleteVolume(ctx, v.ID))

	v = create(t, s, "has it")
	child := filepath.Join(dir, "child.vhdx")
	_, err = vhdx.CreateChild(child, v.Image, vhdx.ChildOptions{})
	noError(t, err)
	_, err = s.Import(ctx, Import{File: child, Name: "child", Parents: p.tree.Name()})
	wantErr(t, "a volume's image", err, ErrInvalid, "among the images")
	_, err = s.Import(ctx, Import{File: child, Name: "child", Parents: filepath.Dir(p.tree.Name())})
	wantErr(t, "a volume's image, from above", err, ErrInvalid, "among the images")
	audit(t, p)
}

func makeBlankChain(file string, n int) error {
	_, err := vhdx.Create(chainFile(file, n, 0), vhdx.CreateOptions{Size: testDisk, BlockSize: testBlock})
	for i := 1; i < n && err == nil; i++ {
		_, err = vhdx.CreateChild(chainFile(file, n, i), chainFile(file, n, i-1), vhdx.ChildOptions{BlockSize: testBlock})
	}
	return err
}

// halfImported is a volume whose import ended before its links were made.
func halfImported(t *testing.T) (*Set, *Pool, Volume) {
	t.Helper()
	dir := memDir(t)
	p, err := open(Options{Name: "p", Dir: dir, Overcommit: 1000}, func(op, _ string) error {
		if strings.HasSuffix(op, " image") {
			return unix.EIO
		}
		return nil
	})
	noError(t, err)
	s, err := NewSet(p)
	noError(t, err)
	noError(t, makeChain(sourceIn(s), 3))
	_, err = s.Import(t.Context(), Import{File: sourceIn(s), Name: "victim", FSType: "xfs"})
	wantErr(t, "import", err, unix.EIO, "has not ended")
	noError(t, s.Close())
	s, p = openSet(t, dir)
	v, _ := victim(t.Context(), s)
	if r, err := p.live(mustParse(t, v.ID)); err != nil || !r.unlinked() {
		t.Fatalf("%+v, %v", r, err)
	}
	if probs := p.problems(t.Context()); len(probs) != 1 || probs[0].Reason != unendedImport {
		t.Fatalf("problems: %v", probs)
	}
	return s, p, v
}

// What an import was interrupted at is done by whoever needs the images.
func TestHalfImportedChain(t *testing.T) {
	for what, do := range map[string]func(context.Context, *Set, string) error{
		"open": func(ctx context.Context, s *Set, id string) error { return writeText(ctx, s, id, 3) },
		"snapshot": func(ctx context.Context, s *Set, id string) error {
			_, err := take(ctx, s, id, "snap")
			return err
		},
		"resize": func(ctx context.Context, s *Set, id string) error {
			_, err := s.Resize(ctx, id, testDisk+4096)
			return err
		},
		"tend": tendOnce,
	} {
		t.Run(what, func(t *testing.T) {
			s, p, v := halfImported(t)
			ctx := t.Context()
			noError(t, do(ctx, s, v.ID))
			noError(t, volumeHolds(ctx, s, v.ID, 3))
			audit(t, p)
			_, err := s.Import(ctx, Import{File: sourceIn(s), Name: "victim"})
			noError(t, err)
			if probs := p.problems(ctx); len(probs) != 0 {
				t.Errorf("problems: %v", probs)
			}
			if _, err := os.Lstat(sourceIn(s)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the old name is still there: %v", err)
			}
			noError(t, s.DeleteVolume(ctx, v.ID))
			audit(t, p)
		})
	}
}

// It can be deleted as well, and what its files hold stays under their old names.
func TestDeleteHalfImportedChain(t *testing.T) {
	s, p, v := halfImported(t)
	noError(t, s.DeleteVolume(t.Context(), v.ID))
	audit(t, p)
	noError(t, fileHolds(sourceIn(s), 3))
}
