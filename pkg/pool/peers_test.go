package pool

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// fingerprint is a SHA-256 that begins with a byte.
func fingerprint(first string) string { return first + strings.Repeat("5c", 31) }

func someController(first string) Controller {
	now := time.Now().UTC().Truncate(time.Second)
	return Controller{Certificate: Certificate{SHA256: fingerprint(first), Until: now.Add(time.Hour)}, Name: "controller-0", Since: now}
}

func TestControllers(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	c := someController("aa")
	if _, known, err := s.ControllerIn(ctx, "p", c.SHA256); known || err != nil {
		t.Fatalf("known before it is registered: %v, %v", known, err)
	}
	for range 2 {
		if err := s.RegisterController(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.RegisterController(ctx, someController("bb")); err != nil {
		t.Fatal(err)
	}
	got, known, err := s.ControllerIn(ctx, "p", c.SHA256)
	if d := cmp.Diff(c, got); d != "" || !known || err != nil {
		t.Fatalf("%v, %v\n%s", known, err, d)
	}
	// The file's name is half of the fingerprint: the other half counts too.
	if _, known, err := s.ControllerIn(ctx, "p", c.SHA256[:62]+"00"); known || !errors.Is(err, ErrDamaged) {
		t.Fatalf("another certificate of the same file: %v, %v", known, err)
	}
	if _, _, err := s.ControllerIn(ctx, "q", c.SHA256); !errors.Is(err, ErrNoPool) {
		t.Fatalf("another pool: %v", err)
	}
	if err := s.WithdrawController(ctx, c.SHA256); err != nil {
		t.Fatal(err)
	}
	if _, known, err := s.ControllerIn(ctx, "p", c.SHA256); known || err != nil {
		t.Fatalf("known after it was withdrawn: %v, %v", known, err)
	}
	if _, known, _ := s.ControllerIn(ctx, "p", fingerprint("bb")); !known {
		t.Fatal("another one went with it")
	}
	for _, bad := range []string{"", "aa", strings.ToUpper(fingerprint("aa")), fingerprint("zz"), "../" + fingerprint("aa")[3:]} {
		c.SHA256 = bad
		wantErr(t, "register "+bad, s.RegisterController(ctx, c), ErrInvalid)
		wantErr(t, "withdraw "+bad, s.WithdrawController(ctx, bad), ErrInvalid)
		_, _, err := s.ControllerIn(ctx, "p", bad)
		wantErr(t, "look up "+bad, err, ErrInvalid)
	}
	create(t, s, "v")
	audit(t, p)
}

// TestControllersLater: a pool that comes late learns of the controller, and
// what a later version has added is kept.
func TestControllersLater(t *testing.T) {
	s, _ := newSet(t)
	ctx := t.Context()
	c := someController("aa")
	if err := s.RegisterController(ctx, c); err != nil {
		t.Fatal(err)
	}
	late, err := Open(Options{Name: "late", Dir: memDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	s.names = append(s.names, "late")
	if err := s.join(late); err != nil {
		t.Fatal(err)
	}
	if _, known, err := s.ControllerIn(ctx, "late", c.SHA256); !known || err != nil {
		t.Fatalf("%v, %v", known, err)
	}
	h, _ := parseFingerprint(c.SHA256)
	file := filepath.Join(late.tree.Name(), controllerPath(h))
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 1, "later": [1]`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Until = c.Until.Add(time.Hour)
	if err := s.RegisterController(ctx, c); err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(file); err != nil || !bytes.Contains(b, []byte(`"later"`)) {
		t.Fatalf("%v: %s", err, b)
	}
}

func TestCollectControllers(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	ended, living := someController("aa"), someController("bb")
	ended.Until = time.Now().Add(-controllerMargin - time.Minute)
	for _, c := range []Controller{ended, living} {
		if err := s.RegisterController(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	stray := filepath.Join(p.tree.Name(), dirControllers, strings.Repeat("0", 32)+".json")
	if err := os.WriteFile(stray, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	done, err := s.Collect(ctx)
	if err != nil || done.Controllers != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	for c, want := range map[string]bool{ended.SHA256: false, living.SHA256: true} {
		if _, known, err := s.ControllerIn(ctx, "p", c); known != want || err != nil {
			t.Errorf("%.4s: known %v, %v", c, known, err)
		}
	}
	if _, err := os.Stat(stray); err != nil {
		t.Fatalf("I-POOL-4: what nobody can read is gone: %v", err)
	}
}

// TestForeignController: whatever stands in the place of a controller's record
// makes nobody trusted, blocks nothing, and Problems names it.
func TestForeignController(t *testing.T) {
	for name, vandal := range vandals {
		t.Run(name, func(t *testing.T) {
			s, p := newSet(t)
			ctx := t.Context()
			c := someController("aa")
			if err := s.RegisterController(ctx, c); err != nil {
				t.Fatal(err)
			}
			h, _ := parseFingerprint(c.SHA256)
			if err := vandal(filepath.Join(p.tree.Name(), controllerPath(h))); err != nil {
				t.Fatal(err)
			}
			bounded(t, "a look", func() {
				if _, known, err := s.ControllerIn(ctx, "p", c.SHA256); known || name != "nothing" && !errors.Is(err, ErrDamaged) {
					t.Errorf("%v, %v", known, err)
				}
				if _, err := s.Collect(ctx); err != nil {
					t.Errorf("Collect: %v", err)
				}
				named := slices.ContainsFunc(s.Problems(ctx), func(pr Problem) bool { return pr.Path == controllerPath(h) })
				if named != (name != "nothing") {
					t.Errorf("Problems names it: %v", named)
				}
			})
		})
	}
}

func TestNodePeer(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	n := Node{
		ID: "n1", BootID: "b", Seen: time.Unix(1e9, 0).UTC(), Endpoints: []string{"10.0.0.1:9811", "[fd00::1]:9811"},
		Certificates: []Certificate{{fingerprint("aa"), time.Unix(2e9, 0).UTC()}, {fingerprint("bb"), time.Unix(3e9, 0).UTC()}},
	}
	if err := s.RegisterNode(ctx, n); err != nil {
		t.Fatal(err)
	}
	got, err := s.NodeIn(ctx, "p", "n1")
	if d := cmp.Diff(n, got); d != "" || err != nil {
		t.Fatalf("%v\n%s", err, d)
	}
	_, err = s.NodeIn(ctx, "p", "n2")
	wantErr(t, "another node", err, ErrNoNode)
	for _, bad := range []string{"host:1", "10.0.0.1", "10.0.0.1:0", "0.0.0.0:1", "[::]:1", "224.0.0.1:1", "[fe80::1%eth0]:1", "unix:/x", "10.0.0.01:1", ":1"} {
		n.Endpoints = []string{bad}
		wantErr(t, "endpoint "+bad, s.RegisterNode(ctx, n), ErrInvalid)
		if _, _, err := decodeNode([]byte(`{"format":1,"id":"n1","seen":"2026-01-01T00:00:00Z","endpoints":["` + bad + `"]}`)); !errors.Is(err, ErrDamaged) {
			t.Errorf("endpoint %s read: %v", bad, err)
		}
	}
	n.Endpoints, n.Certificates = make([]string, 9), nil
	wantErr(t, "many endpoints", s.RegisterNode(ctx, n), ErrInvalid)
	n.Endpoints, n.Certificates = nil, []Certificate{{SHA256: "aa"}}
	wantErr(t, "a short fingerprint", s.RegisterNode(ctx, n), ErrInvalid)
	create(t, s, "v")
	audit(t, p)
}

func TestHolder(t *testing.T) {
	s, p := newSet(t, func(o *Options) { o.Holder = "n1" })
	ctx := t.Context()
	register(t, s, "n1", "n2")
	v := create(t, s, "v")
	check := func(what, node string, held bool) {
		t.Helper()
		if n, h, err := s.Holder(ctx, v.ID); n != node || h != held || err != nil {
			t.Fatalf("%s: %q, %v, %v", what, n, h, err)
		}
	}
	check("new", "", false)
	if err := s.Attach(ctx, v.ID, "n2", false); err != nil {
		t.Fatal(err)
	}
	check("attached, but not open", "", false)
	im, err := s.OpenImage(ctx, v.ID, false, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	check("open", "n1", true) // the note counts, not the attachment
	// To look takes nothing: it is open all the same, and opens again after.
	r, err := p.live(mustParse(t, v.ID))
	if err != nil {
		t.Fatal(err)
	}
	note := filepath.Join(p.tree.Name(), dirLeases, r.Image[:2], r.Image+".json")
	if err := os.Remove(note); err != nil {
		t.Fatal(err)
	}
	check("open, without a note", "n2", true)
	if err := p.update(ctx, mustParse(t, v.ID), func(r *record) error { r.Attachments = nil; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, held, err := s.Holder(ctx, v.ID); !held || !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), v.Image) {
		t.Fatalf("locked by nobody knows whom: %v, %v", held, err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	check("closed", "", false)
	for _, id := range badIDs {
		_, _, err := s.Holder(ctx, id)
		wantErr(t, "Holder", err, ErrNotFound)
	}
}

func TestPoolOf(t *testing.T) {
	s, _ := newSet(t)
	v := create(t, s, "v")
	if name, err := s.PoolOf(v.ID); name != "p" || err != nil {
		t.Fatalf("%q, %v", name, err)
	}
	_, err := s.PoolOf("q" + v.ID[1:])
	wantErr(t, "a pool not served", err, ErrNotFound)
	if d := cmp.Diff([]string{"p"}, s.PoolNames()); d != "" {
		t.Fatal(d)
	}
}

func FuzzController(f *testing.F) {
	h, _ := parseFingerprint(fingerprint("aa"))
	c := someController("aa")
	b, err := encodeObject(&controllerRecord{SHA256: c.SHA256, Until: c.Until, Name: c.Name, Since: c.Since}, extras{"later": []byte(`[1]`)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"format":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, extra, err := decodeController(b, h)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrFormat) {
				t.Fatalf("no sentinel: %v", err)
			}
			return
		}
		if got, ok := parseFingerprint(c.SHA256); !ok || got != h || len(c.Name) > maxPeerName {
			t.Fatalf("accepted: %+v", c)
		}
		if _, err := encodeObject(&controllerRecord{SHA256: c.SHA256, Until: c.Until, Name: c.Name, Since: c.Since}, extra); err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
	})
}
