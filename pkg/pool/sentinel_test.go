package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// wantErr fails the test unless err is the sentinel and says each text.
func wantErr(t *testing.T, what string, err, sentinel error, texts ...string) {
	t.Helper()
	if !errors.Is(err, sentinel) {
		t.Fatalf("%s: %v, want %v", what, err, sentinel)
	}
	for _, s := range texts {
		if !strings.Contains(err.Error(), s) {
			t.Fatalf("%s: %q is not in: %v", what, s, err)
		}
	}
}

var badIDs = []string{
	"", "x", "fake-vol-id", "fake-vol-id-0123456789", "non-existing-volume-id", "none-exist-id",
	"p-1bdd5b5b92e2d9f30a3b223bb359551d", "p-1bdd5b5b92e2d9f30a3b223bb359551d-", strings.Repeat("a", 4096),
	"p-1BDD5b5b92e2d9f30a3b223bb359551d-c68d2af8993c3886", "../../etc-1bdd5b5b92e2d9f30a3b223bb359551d-c68d2af8993c3886",
	"-1bdd5b5b92e2d9f30a3b223bb359551d-c68d2af8993c3886", "p-1bdd5b5b92e2d9f30a3b223bb359551d-c68d2af8993c388\xff",
}

func TestUnknownIDs(t *testing.T) {
	s, _ := newSet(t)
	ctx := t.Context()
	register(t, s, "n1")
	gone := create(t, s, "gone")
	if err := s.DeleteVolume(ctx, gone.ID); err != nil {
		t.Fatal(err)
	}
	for _, id := range append(badIDs, gone.ID) {
		_, err := s.Volume(ctx, id)
		wantErr(t, "Volume", err, ErrNotFound)
		_, err = s.Resize(ctx, id, gib)
		wantErr(t, "Resize", err, ErrNotFound)
		wantErr(t, "Attach", s.Attach(ctx, id, "n1", false), ErrNotFound)
		wantErr(t, "SetUse", s.SetUse(ctx, id, UseMounted), ErrNotFound)
		wantErr(t, "BeginFormat", s.BeginFormat(ctx, id, "ext4"), ErrNotFound)
		_, err = s.OpenImage(ctx, id, false, vhdx.OpenOptions{})
		wantErr(t, "OpenImage", err, ErrNotFound)
		if err := s.DeleteVolume(ctx, id); err != nil {
			t.Fatalf("DeleteVolume %q: %v", id, err)
		}
		if err := s.Detach(ctx, id, "n1"); err != nil {
			t.Fatalf("Detach %q: %v", id, err)
		}
	}
	other := "q" + gone.ID[1:]
	_, err := s.Volume(ctx, other)
	wantErr(t, "Volume of a pool not served", err, ErrNotFound, "there are p")
	wantErr(t, "DeleteVolume of a pool not served", s.DeleteVolume(ctx, other), ErrNoPool, "there are p")
	wantErr(t, "Detach of a pool not served", s.Detach(ctx, other, ""), ErrNoPool, "there are p")
}

// TestLateDelete is I-POOL-6.
func TestLateDelete(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	old := create(t, s, "v")
	if err := s.DeleteVolume(ctx, old.ID); err != nil {
		t.Fatal(err)
	}
	v := create(t, s, "v")
	if v.ID == old.ID {
		t.Fatal("the id came back")
	}
	if err := s.DeleteVolume(ctx, old.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Volume(ctx, v.ID); err != nil {
		t.Fatalf("a late deletion hit the successor: %v", err)
	}
	audit(t, p)
}

func TestCreateRefuses(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	create(t, s, "v")
	for _, c := range []struct {
		what string
		spec Spec
		want error
	}{
		{"no name", Spec{Size: gib}, ErrInvalid},
		{"long name", Spec{Name: strings.Repeat("n", 129), Size: gib}, ErrInvalid},
		{"negative size", Spec{Name: "a", Size: -1}, ErrInvalid},
		{"limit below size", Spec{Name: "a", Size: gib, Limit: gib - 1}, ErrInvalid},
		{"no sector multiple", Spec{Name: "a", Size: gib + 1, Limit: gib + 2}, ErrOutOfRange},
		{"limit below a sector", Spec{Name: "a", Limit: 100}, ErrOutOfRange},
		{"beyond the format", Spec{Name: "a", Size: 65 << 40}, ErrOutOfRange},
		{"block size", Spec{Name: "a", Size: gib, Params: Params{BlockSize: 512 << 20}}, ErrInvalid},
		{"sector size", Spec{Name: "a", Size: gib, Params: Params{LogicalSectorSize: 1024}}, ErrInvalid},
		{"log size", Spec{Name: "a", Size: gib, Params: Params{LogSize: -1}}, ErrInvalid},
		{"mkfs options", Spec{Name: "a", Size: gib, Params: Params{MkfsOptions: strings.Repeat("x", 5000)}}, ErrInvalid},
		{"fs type", Spec{Name: "a", Size: gib, Params: Params{FSType: strings.Repeat("x", 50)}}, ErrInvalid},
		{"pool", Spec{Name: "a", Size: gib, Pool: "other"}, ErrNoPool},
		{"double size", Spec{Name: "v", Size: 2 * gib}, ErrConflict},
		{"half limit", Spec{Name: "v", Limit: gib / 2}, ErrConflict},
		{"other parameters", Spec{Name: "v", Size: gib, Params: Params{Fixed: true}}, ErrConflict},
		{"other filesystem", Spec{Name: "v", Size: gib, Params: Params{FSType: "xfs"}}, ErrConflict},
	} {
		_, err := s.CreateVolume(ctx, c.spec)
		wantErr(t, c.what, err, c.want)
	}
	audit(t, p)
}

func TestCreateSizes(t *testing.T) {
	s, p := newSet(t)
	for i, c := range []struct {
		size, limit, sector, want int64
	}{
		{0, 0, 0, gib}, {0, 3 << 20, 0, 3 << 20}, {1, 0, 0, 512}, {1, 0, 4096, 4096},
		{gib + 1, gib + 512, 0, gib + 512}, {gib + 1<<20, 0, 0, gib + 1<<20}, {16 << 40, 0, 0, 16 << 40},
	} {
		spec := Spec{Name: fmt.Sprint("v", i), Size: c.size, Limit: c.limit, Params: Params{LogicalSectorSize: int(c.sector)}}
		v, err := s.CreateVolume(t.Context(), spec)
		if err != nil || v.Size != c.want {
			t.Fatalf("%+v: %d, %v", c, v.Size, err)
		}
		im, err := s.OpenImage(t.Context(), v.ID, true, vhdx.OpenOptions{})
		if err != nil || im.Size() != c.want {
			t.Fatalf("%+v: image: %v", c, err)
		}
		im.Close()
	}
	audit(t, p)
}

// TestNames: any bytes make a name, and come back.
func TestNames(t *testing.T) {
	s, p := newSet(t)
	names := []string{
		"a", "pvc-0b3c", "..", ".", "/", "../../etc/passwd", "a\x00b", "\xff\xfe", "\n", " ", "CON", "ünï",
		strings.Repeat("\xf0", 128), strings.Repeat("x", 128), "\u2028<>&\"\\",
	}
	ids := map[string]string{}
	for _, n := range names {
		v := create(t, s, n)
		if v.Name != n || ids[v.ID] != "" || len(v.ID) > 128 {
			t.Fatalf("%q: name %q, id %s", n, v.Name, v.ID)
		}
		ids[v.ID] = n
		got, err := s.Volume(t.Context(), v.ID)
		if err != nil || got.Name != n {
			t.Fatalf("%q: %q, %v", n, got.Name, err)
		}
	}
	audit(t, p)
	for id := range ids {
		if err := s.DeleteVolume(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	audit(t, p)
}

func TestOpenPoolRefuses(t *testing.T) {
	dir := t.TempDir()
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	marked := func(content string) string {
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, fileMarker), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return d
	}
	openSet(t, dir)
	for _, c := range []struct {
		what string
		o    Options
		want error
		text string
	}{
		{"no name", Options{Dir: dir}, ErrInvalid, "a-z"},
		{"bad name", Options{Name: "A", Dir: dir}, ErrInvalid, "a-z"},
		{"long name", Options{Name: strings.Repeat("a", 33), Dir: dir}, ErrInvalid, "32"},
		{"dash", Options{Name: "a-", Dir: dir}, ErrInvalid, "a-z"},
		{"no directory", Options{Name: "p"}, ErrInvalid, "directory"},
		{"missing directory", Options{Name: "p", Dir: dir + "/none"}, os.ErrNotExist, "none"},
		{"overcommit", Options{Name: "p", Dir: dir, Overcommit: -1}, ErrInvalid, "-1"},
		{"reserve", Options{Name: "p", Dir: dir, Reserve: -1}, ErrInvalid, "-1"},
		{"other name", Options{Name: "q", Dir: dir}, ErrInvalid, `pool named "p"`},
		{"not empty", Options{Name: "p", Dir: full}, ErrNotAPool, "data"},
		{"future format", Options{Name: "p", Dir: marked(`{"format":2}`)}, ErrFormat, "up to 1"},
		{"damaged marker", Options{Name: "p", Dir: marked(`{"format":1,"name":"../p","pool":"x","created":"2026-01-01T00:00:00Z"}`)}, ErrDamaged, fileMarker},
	} {
		p, err := Open(c.o)
		if err == nil {
			p.Close()
		}
		wantErr(t, c.what, err, c.want, c.text)
	}
	lost := t.TempDir()
	if err := os.Mkdir(filepath.Join(lost, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	openSet(t, lost) // a fresh ext4 is empty
}

func TestSet(t *testing.T) {
	_, err := NewSet()
	wantErr(t, "no pools", err, ErrInvalid)
	_, a := newSet(t)
	_, err = NewSet(a, a)
	wantErr(t, "twice the same", err, ErrInvalid, `"p"`)
	b, err := Open(Options{Name: "a", Dir: memDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	s, err := NewSet(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := s.Pool(""); err != nil || p != a {
		t.Fatalf("the default is not the first: %v", err)
	}
	_, err = s.Pool("x")
	wantErr(t, "unknown pool", err, ErrNoPool, "a, p")
	if err := s.RegisterNode(t.Context(), Node{ID: "n1", BootID: "b1"}); err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Pools() {
		if n, err := p.node("n1"); err != nil || n.BootID != "b1" {
			t.Fatalf("node in pool %s: %+v, %v", p.Name(), n, err)
		}
	}
	_, err = s.Node(t.Context(), "n2")
	wantErr(t, "unknown node", err, ErrNoNode, "n2")
	wantErr(t, "node without id", s.RegisterNode(t.Context(), Node{}), ErrInvalid)
	wantErr(t, "node with a long id", s.RegisterNode(t.Context(), Node{ID: strings.Repeat("n", 257)}), ErrInvalid)
	v, err := s.CreateVolume(t.Context(), Spec{Name: "v", Size: gib, Pool: "a"})
	if err != nil || v.Pool != "a" || !strings.HasPrefix(v.ID, "a-") {
		t.Fatalf("volume in pool a: %+v, %v", v, err)
	}
	if _, err := s.Volume(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
}

// TestBusy: a lock that somebody else has is waited for as long as the context says.
func TestBusy(t *testing.T) {
	dir := memDir(t)
	s, p := openSet(t, dir)
	v := create(t, s, "v")
	_, other := openSet(t, dir)
	for _, holder := range []*Pool{p, other} { // in this process, and as if in another
		l, err := holder.lockVolume(t.Context(), hashOf("v"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		wantErr(t, "SetUse", s.SetUse(ctx, v.ID, UseMounted), ErrBusy)
		wantErr(t, "SetUse", s.SetUse(ctx, v.ID, UseMounted), context.DeadlineExceeded)
		_, err = s.CreateVolume(ctx, Spec{Name: "v", Size: gib})
		wantErr(t, "CreateVolume", err, ErrBusy)
		wantErr(t, "DeleteVolume", s.DeleteVolume(ctx, v.ID), ErrBusy)
		cancel()
		if _, err := s.Volume(t.Context(), v.ID); err != nil {
			t.Fatalf("reading needs no lock: %v", err)
		}
		create(t, s, fmt.Sprint("w", holder == p)) // other names are free
		l.close()
	}
	if err := s.SetUse(t.Context(), v.ID, UseMounted); err != nil {
		t.Fatal(err)
	}
}

// TestFormatVersions is I-POOL-10.
func TestFormatVersions(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	register(t, s, "n1")
	v := create(t, s, "v")
	record := filepath.Join(p.tree.Name(), p.recordPath(hashOf("v")))
	edit := func(old, new string) {
		t.Helper()
		b, err := os.ReadFile(record)
		if err != nil || !strings.Contains(string(b), old) {
			t.Fatalf("%q is not in %s: %v", old, b, err)
		}
		if err := os.WriteFile(record, []byte(strings.Replace(string(b), old, new, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	edit(`"format": 1,`, `"format": 1, "fromTheFuture": {"a": [1, 2]},`)
	if err := s.Attach(ctx, v.ID, "n1", false); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(record)
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(b)), ""), `"fromTheFuture":{"a":[1,2]}`) {
		t.Fatalf("an unknown field was not kept: %s", b)
	}
	edit(`"params": {}`, `"params": {"unknown": 1}`)
	_, err = s.Volume(ctx, v.ID)
	wantErr(t, "an unknown parameter", err, ErrDamaged, "unknown")
	edit(`"unknown": 1`, ``)
	edit(`"format": 1,`, `"format": 2,`)
	_, err = s.Volume(ctx, v.ID)
	wantErr(t, "a record of a later format", err, ErrFormat, "up to 1", p.recordPath(hashOf("v")))
	wantErr(t, "its deletion", s.DeleteVolume(ctx, v.ID), ErrFormat)
	_, err = s.CreateVolume(ctx, Spec{Name: "v", Size: gib})
	wantErr(t, "its creation", err, ErrFormat)
	edit(`"format": 2,`, `"format": 1,`)

	account := filepath.Join(p.tree.Name(), fileAccount)
	if err := os.WriteFile(account, []byte(`{"format":2,"committed":0}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.CreateVolume(ctx, Spec{Name: "w", Size: gib})
	wantErr(t, "an account of a later format", err, ErrFormat)
}

func TestNotWritable(t *testing.T) {
	_, p := newSet(t)
	for _, errno := range []error{unix.EACCES, unix.EROFS} {
		s, q := openSet(t, p.tree.Name())
		v := create(t, s, "v"+errno.Error())
		q.tree.Step = func(string, string) error { return errno }
		_, err := s.CreateVolume(t.Context(), Spec{Name: "another", Size: gib})
		wantErr(t, "create", err, ErrNotWritable, "pool p", map[error]string{unix.EACCES: "2770", unix.EROFS: "read-write"}[errno])
		_, err = s.Resize(t.Context(), v.ID, 2*gib)
		wantErr(t, "resize", err, ErrNotWritable)
		wantErr(t, "delete", s.DeleteVolume(t.Context(), v.ID), ErrNotWritable)
	}
}
