package vhdx_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// chainIn makes a base and a child in a directory tree: root/a/base.vhdx and
// root/b/child.vhdx.
func chainIn(t *testing.T, root string, o vhdx.ChildOptions) (base, child string) {
	t.Helper()
	base, child = filepath.Join(root, "a", "base.vhdx"), filepath.Join(root, "b", "child.vhdx")
	for _, dir := range []string{filepath.Dir(base), filepath.Dir(child)} {
		must(t, os.MkdirAll(dir, 0o700))
	}
	_, err := vhdx.Create(base, vhdx.CreateOptions{Size: 4 * mib, BlockSize: mib})
	must(t, err)
	_, err = vhdx.CreateChild(child, base, o)
	must(t, err)
	return base, child
}

// A parent that must not or cannot be used is refused, with the path that was
// tried (I-CHAIN-2, I-CHAIN-4).
func TestParentsRefused(t *testing.T) {
	for _, c := range []struct {
		name    string
		child   vhdx.ChildOptions
		root    string // below the test's directory, where parents may be
		prepare func(t *testing.T, root, base, child string)
		err     error
		tried   string
	}{
		{name: "fine", err: nil},
		{name: "outside", root: "b", err: vhdx.ErrParentRefused, tried: "/a/base.vhdx"},
		{name: "missing", prepare: func(t *testing.T, _, base, _ string) { must(t, os.Remove(base)) }, err: vhdx.ErrParentMissing, tried: "/a/base.vhdx"},
		{name: "no directory", prepare: func(t *testing.T, root, _, _ string) { must(t, os.RemoveAll(filepath.Join(root, "a"))) }, err: vhdx.ErrParentMissing, tried: "/a/base.vhdx"},
		{name: "absolute path in relative_path", child: vhdx.ChildOptions{RelativePath: "c:/a/base.vhdx"}, err: vhdx.ErrParentMissing, tried: "base.vhdx"},
		{name: "far up", child: vhdx.ChildOptions{RelativePath: strings.Repeat("../", 40) + "etc/passwd"}, err: vhdx.ErrParentRefused, tried: "/etc/passwd"},
		{name: "itself", child: vhdx.ChildOptions{RelativePath: "child.vhdx"}, err: vhdx.ErrParentRefused, tried: "/b/child.vhdx"},
		{name: "a directory", child: vhdx.ChildOptions{RelativePath: "../a"}, err: vhdx.ErrInvalid, tried: "/a"},
		{name: "not an image", prepare: func(t *testing.T, _, base, _ string) { must(t, os.WriteFile(base, make([]byte, 4*mib), 0o600)) }, err: vhdx.ErrNotVHDX, tried: "/a/base.vhdx"},
		{name: "a link out of it", root: "b", child: vhdx.ChildOptions{RelativePath: "link.vhdx"}, prepare: func(t *testing.T, _, base, child string) {
			must(t, os.Symlink(base, filepath.Join(filepath.Dir(child), "link.vhdx")))
		}, err: vhdx.ErrParentRefused, tried: "/b/link.vhdx"},
		{name: "a loop of links", child: vhdx.ChildOptions{RelativePath: "link.vhdx"}, prepare: func(t *testing.T, _, _, child string) {
			must(t, os.Symlink("link.vhdx", filepath.Join(filepath.Dir(child), "link.vhdx")))
		}, err: vhdx.ErrParentRefused, tried: "/b/link.vhdx"},
		{name: "written since", prepare: func(t *testing.T, _, base, _ string) {
			im := open(t, base, vhdx.OpenOptions{})
			_, err := im.WriteAt(make([]byte, 512), 0)
			must(t, err)
			closeImage(t, im)
		}, err: vhdx.ErrParentMismatch, tried: "/a/base.vhdx"},
		{name: "in use by a writer", prepare: func(t *testing.T, _, base, _ string) {
			im := open(t, base, vhdx.OpenOptions{})
			t.Cleanup(func() { closeImage(t, im) })
		}, err: vhdx.ErrInUse, tried: "/a/base.vhdx"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			base, child := chainIn(t, root, c.child)
			if c.prepare != nil {
				c.prepare(t, root, base, child)
			}
			im, err := vhdx.OpenPath(child, vhdx.OpenOptions{ReadOnly: true, Parents: vhdx.ParentsIn(filepath.Join(root, c.root))})
			if c.err == nil {
				must(t, err)
				closeImage(t, im)
				return
			}
			var parent *vhdx.ParentError
			if !errors.Is(err, c.err) || !errors.As(err, &parent) || !strings.Contains(err.Error(), c.tried) {
				t.Fatalf("%v, want %v and %q", err, c.err, c.tried)
			}
			// It can be looked at alone; its own file is free again.
			closeImage(t, open(t, child, vhdx.OpenOptions{ReadOnly: true, NoParents: true}))
			f, err := os.OpenFile(child, os.O_RDWR, 0)
			must(t, err)
			of, err := vhdx.NewOSFile(f, vhdx.FileOptions{})
			must(t, err)
			must(t, of.Close())
		})
	}
}

func TestNoParentsAllowed(t *testing.T) {
	_, child := chainIn(t, t.TempDir(), vhdx.ChildOptions{})
	if _, err := vhdx.OpenPath(child, vhdx.OpenOptions{}); !errors.Is(err, vhdx.ErrParentRefused) {
		t.Fatalf("%v", err)
	}
	if _, err := vhdx.OpenPath(child, vhdx.OpenOptions{NoParents: true}); !errors.Is(err, vhdx.ErrInvalid) {
		t.Fatalf("a writable open without parents: %v", err)
	}
	im := open(t, child, vhdx.OpenOptions{ReadOnly: true, NoParents: true})
	defer closeImage(t, im)
	if _, err := im.ReadAt(make([]byte, 512), 0); !errors.Is(err, vhdx.ErrParentMissing) {
		t.Fatalf("a read of what the parent holds: %v", err)
	}
}

// Two images that are each other's parents, and a chain that is too long.
func TestParentsEndless(t *testing.T) {
	root := t.TempDir()
	path := func(n int) string { return filepath.Join(root, fmt.Sprintf("%d.vhdx", n)) }
	o := vhdx.OpenOptions{ReadOnly: true, Parents: vhdx.ParentsIn(root)}
	_, err := vhdx.Create(path(0), vhdx.CreateOptions{Size: mib, BlockSize: mib})
	must(t, err)
	for n := 1; n < 257; n++ {
		_, err := vhdx.CreateChild(path(n), path(n-1), vhdx.ChildOptions{BlockSize: mib})
		must(t, err)
	}
	closeImage(t, open(t, path(255), o))
	if _, err := vhdx.OpenPath(path(256), o); !errors.Is(err, vhdx.ErrParentRefused) {
		t.Fatalf("a chain of 257: %v", err)
	}
	bottom := open(t, path(1), o) // shared with what is opened next
	if _, err := vhdx.OpenPath(path(256), o); !errors.Is(err, vhdx.ErrParentRefused) {
		t.Fatalf("a chain of 257, partly open: %v", err)
	}
	closeImage(t, bottom)

	// 1 stands on 0. Now 0 becomes a copy of 2, which stands on 1.
	must(t, os.Rename(path(2), path(0)))
	if _, err := vhdx.OpenPath(path(1), o); !errors.Is(err, vhdx.ErrParentRefused) || !strings.Contains(err.Error(), "cycle") {
		t.Fatalf("a cycle: %v", err)
	}
}

// All three kinds of path lead to the parent.
func TestParentPaths(t *testing.T) {
	root := t.TempDir()
	_, child := chainIn(t, root, vhdx.ChildOptions{RelativePath: "nowhere.vhdx", Absolute: true})
	closeImage(t, open(t, child, vhdx.OpenOptions{ReadOnly: true, Parents: vhdx.ParentsIn(root)}))
	base := filepath.Join(root, "a", "base.vhdx")
	for _, c := range []struct{ key, value, tried string }{
		{"relative_path", `..\a\base.vhdx`, base},
		{"relative_path", `.\..\a\.\base.vhdx`, base},
		{"absolute_win32_path", `\\?\C:` + strings.ReplaceAll(base, "/", `\`), base},
		{"absolute_win32_path", `\\?\UNC\server\share\a\base.vhdx`, base},
		{"absolute_win32_path", `D:\a\base.vhdx`, base},
		{"volume_path", `\\?\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\a\base.vhdx`, base},
	} {
		f, tried, err := vhdx.ParentsIn(root).OpenParent(child, vhdx.ParentPath{Key: c.key, Value: c.value})
		if err != nil || tried != c.tried {
			t.Fatalf("%s: tried %s: %v", c.value, tried, err)
		}
		must(t, f.Close())
	}
	_, tried, err := vhdx.ParentsIn(root).OpenParent(child, vhdx.ParentPath{Key: "volume_path", Value: `\\?\Volume{1}\..\..\..\etc\passwd`})
	if !errors.Is(err, vhdx.ErrParentRefused) && !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("tried %s: %v", tried, err)
	}
}
