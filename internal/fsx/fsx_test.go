package fsx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func newTree(t *testing.T) (*Tree, string) {
	t.Helper()
	dir := t.TempDir()
	tree, err := OpenTree(dir, "tmp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	for _, d := range []string{"tmp", "d"} {
		if err := tree.Mkdir(d); err != nil {
			t.Fatal(err)
		}
	}
	return tree, dir
}

func content(t *testing.T, tree *Tree, name string) string {
	t.Helper()
	b, err := tree.Read(name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func noTemp(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil || len(left) > 0 {
		t.Fatalf("temporary files are left: %v, %v", left, err)
	}
}

func TestReplace(t *testing.T) {
	tree, dir := newTree(t)
	for _, text := range []string{"one", "two", ""} {
		if err := tree.Replace("d/f", []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got := content(t, tree, "d/f"); got != text {
			t.Fatalf("%q, want %q", got, text)
		}
	}
	if err := tree.ReplaceLazily("d/f", []byte("three")); err != nil || content(t, tree, "d/f") != "three" {
		t.Fatal(err)
	}
	if err := tree.Replace("none/f", nil); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "none") {
		t.Fatalf("into a missing directory: %v", err)
	}
	noTemp(t, dir)
}

func TestLinkOnce(t *testing.T) {
	tree, dir := newTree(t)
	var wg sync.WaitGroup
	won := make(chan string, 16)
	for i := range 16 {
		wg.Go(func() {
			text := fmt.Sprint("content ", i)
			switch err := tree.LinkOnce("d/f", []byte(text)); {
			case err == nil:
				won <- text
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d have won", len(won))
	}
	winner := <-won
	if got := content(t, tree, "d/f"); got != winner {
		t.Fatalf("%q, but %q has won", got, winner)
	}
	// A link whose answer was lost and that is repeated finds its own file.
	if err := tree.LinkOnce("d/f", []byte(winner)); err != nil {
		t.Fatal(err)
	}
	noTemp(t, dir)
}

// TestLinkWithoutLinks: a filesystem without hard links gets a rename that
// replaces nothing.
func TestLinkWithoutLinks(t *testing.T) {
	tree, dir := newTree(t)
	for i, want := range []error{nil, fs.ErrExist} {
		tmp, err := tree.writeTemp([]byte(fmt.Sprint(i)), true)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.renameOnce(tmp, "d/f"); !errors.Is(err, want) {
			t.Fatalf("%v, want %v", err, want)
		}
		tree.Remove(tmp)
	}
	if got := content(t, tree, "d/f"); got != "0" {
		t.Fatalf("%q", got)
	}
	noTemp(t, dir)
}

// TestSteps: every change asks Step, an error from it stops the change and
// leaves no temporary file, and a skipped sync is no error.
func TestSteps(t *testing.T) {
	tree, dir := newTree(t)
	changes := map[string]func() error{
		"replace": func() error { return tree.Replace("d/f", []byte("new")) },
		"link":    func() error { return tree.LinkOnce("d/g", []byte("new")) },
		"remove":  func() error { return tree.Remove("d/f") },
		"mkdir":   func() error { return tree.Mkdir("d/sub") },
		"sync":    func() error { return tree.SyncDir("d") },
		"lazily":  func() error { return tree.RemoveLazily("d/g") },
	}
	for name, change := range changes {
		for at := 1; ; at++ {
			n := 0
			tree.Step = func(op, path string) error {
				if n++; n == at {
					return unix.EIO
				}
				return nil
			}
			err := change()
			tree.Step = nil
			if n < at {
				if err != nil || at == 1 {
					t.Fatalf("%s: %d steps, %v", name, n, err)
				}
				break
			}
			if !errors.Is(err, unix.EIO) {
				t.Fatalf("%s: step %d: %v", name, at, err)
			}
			if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) > 0 && !strings.Contains(err.Error(), "unlink") && !strings.Contains(err.Error(), "sync directory") {
				t.Fatalf("%s: step %d: %v left, %v", name, at, left, err)
			}
			for _, n := range []string{"d/f", "d/g"} {
				os.Remove(filepath.Join(dir, n))
			}
			for _, e := range glob(t, filepath.Join(dir, "tmp", ".*")) {
				os.Remove(e)
			}
		}
	}
	tree.Step = func(op, _ string) error {
		if strings.HasPrefix(op, "sync") {
			return ErrSkip
		}
		return nil
	}
	if err := tree.Replace("d/f", []byte("x")); err != nil {
		t.Fatal(err)
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestRemove(t *testing.T) {
	tree, dir := newTree(t)
	if err := tree.Replace("d/f", nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := tree.Remove("d/f"); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{tree.Remove("none/f"), tree.RemoveLazily("d/f")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "d/full/x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := tree.Remove("d/full"); err == nil {
		t.Fatal("a directory with something in it was removed")
	}
}

func TestMkdir(t *testing.T) {
	tree, dir := newTree(t)
	syncs := 0
	tree.Step = func(op, _ string) error {
		if op == "sync directory" {
			syncs++
		}
		return nil
	}
	for range 3 {
		if err := tree.Mkdir("d/sub"); err != nil {
			t.Fatal(err)
		}
	}
	if syncs != 1 {
		t.Fatalf("%d syncs", syncs)
	}
	// One that another process made, perhaps without having synced it.
	if err := os.Mkdir(filepath.Join(dir, "d/other"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := tree.Mkdir("d/other"); err != nil {
			t.Fatal(err)
		}
	}
	if syncs != 2 {
		t.Fatalf("%d syncs", syncs)
	}
	for range 2 {
		if err := tree.Mkdirs("d", "one", "other", "two"); err != nil {
			t.Fatal(err)
		}
	}
	if syncs != 3 {
		t.Fatalf("%d syncs", syncs)
	}
	if err := os.WriteFile(filepath.Join(dir, "d/file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tree.Mkdir("d/file"); !errors.Is(err, ErrForeign) {
		t.Fatalf("over a file: %v", err)
	}
}

func TestLocks(t *testing.T) {
	tree, dir := newTree(t)
	if err := tree.Replace("d/f", nil); err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for range 3 {
		f, err := tree.Open("d/f", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	a, b, c := files[0], files[1], files[2]
	far := Range{Start: 1 << 62, Length: 1}
	check := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Fatalf("%s: %v, want %v", what, err, want)
		}
	}
	check("first", TryLock(a, far, true), nil)
	check("again on the same description", TryLock(a, far, true), nil)
	check("another description", TryLock(b, far, true), ErrLocked)
	check("another byte", TryLock(b, Range{Start: 1<<62 + 1, Length: 1}, true), nil)
	check("the whole file", TryLock(c, Whole, false), ErrLocked)
	check("to shared", TryLock(a, far, false), nil)
	check("shared beside shared", TryLock(b, far, false), nil)
	check("exclusive beside shared", TryLock(a, far, true), ErrLocked)
	check("unlock", Unlock(b, far), nil)
	check("back to exclusive", TryLock(a, far, true), nil)

	twin, err := Dup(a)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	check("a duplicate keeps the lock", TryLock(c, far, true), ErrLocked)
	twin.Close()
	check("until it is closed", TryLock(c, far, true), nil)
	read, err := os.Open(filepath.Join(dir, "d/f"))
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	check("exclusive on a read-only descriptor", TryLock(read, Range{Start: 5, Length: 1}, true), unix.EBADF)
	read.Close()
	if err := TryLock(read, Whole, false); err == nil {
		t.Fatal("a closed file was locked")
	}
}

func TestMount(t *testing.T) {
	tree, dir := newTree(t)
	m, err := tree.Mount()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if m.FSType == "" || m.Magic != int64(st.Type) || !strings.HasPrefix(dir, m.Point) || !slices.Contains(m.Options, "rw") {
		t.Fatalf("%+v", m)
	}
	if _, err := tree.Statfs(); err != nil {
		t.Fatal(err)
	}
}

func TestFindMount(t *testing.T) {
	const table = `22 1 0:21 / /proc rw,relatime - proc proc rw
36 35 98:0 /mnt1 /my\040dir rw,noatime master:1 propagate_from:2 - nfs4 host:/a\040b rw,vers=4.2,hard
`
	m, err := FindMount(strings.NewReader(table), func(i *mountinfo.Info) bool { return i.ID == 36 })
	if err != nil {
		t.Fatal(err)
	}
	want := Mount{Point: "/my dir", FSType: "nfs4", Source: "host:/a b", Options: []string{"rw", "noatime", "vers=4.2", "hard"}}
	if d := cmp.Diff(want, m); d != "" {
		t.Fatal(d)
	}
	m, err = FindMount(strings.NewReader(table), func(*mountinfo.Info) bool { return false })
	if err != nil || m.FSType != "" {
		t.Fatalf("%+v, %v", m, err)
	}
	if _, err = FindMount(strings.NewReader("garbage\n"), func(*mountinfo.Info) bool { return true }); err == nil {
		t.Fatal("garbage was taken")
	}
}
