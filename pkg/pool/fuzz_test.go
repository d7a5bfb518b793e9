package pool

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

// seedRecord is a record with every field.
func seedRecord(t testing.TB) ([]byte, hash) {
	t.Helper()
	r := newRecord(&Pool{name: "p"}, Spec{Name: "v\xff", Size: gib, Params: Params{Fixed: true, BlockSize: 1 << 20, FSType: "ext4", MkfsOptions: "-m 0"}})
	r.Attachments = []Attachment{{Node: "n1", ReadOnly: true, Since: time.Unix(1, 0).UTC()}}
	r.FSType, r.Deleting = "ext4", true
	r.extra = extras{"later": []byte(`[1]`)}
	b, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	return b, r.id.hash
}

// FuzzRecord: what decodes encodes to something that decodes to the same, and
// what does not is damaged or of another format.
func FuzzRecord(f *testing.F) {
	seed, h := seedRecord(f)
	f.Add(seed)
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(strings.Replace(string(seed), `"size"`, `"Size"`, 1)))
	f.Add([]byte(strings.Repeat(`{"a":`, 5000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b, "p", h)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrFormat) {
				t.Fatalf("no sentinel: %v", err)
			}
			return
		}
		if r.name() != "v\xff" || r.Size <= 0 || r.Committed < r.Size || !validImage(r.Image) || imagePath(r.Image) == "" {
			t.Fatalf("accepted: %+v", r)
		}
		out, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeRecord(out, "p", h)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, out)
		}
		if twice, err := again.encode(); err != nil || !bytes.Equal(out, twice) {
			t.Fatalf("%v\n%s\n%s", err, out, twice)
		}
	})
}

func FuzzID(f *testing.F) {
	f.Add("p-1bdd5b5b92e2d9f30a3b223bb359551d-c68d2af8993c3886")
	for _, id := range badIDs {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := parseID(s)
		if err != nil {
			if !errors.Is(err, ErrNotFound) || len(err.Error()) > 2000 {
				t.Fatalf("%v", err)
			}
			return
		}
		if v.String() != s || len(s) > maxIDLen || strings.ContainsAny(s, "/.\x00") || v.hash.lock() < firstVolLock {
			t.Fatalf("accepted: %q", s)
		}
	})
}

func FuzzToken(f *testing.F) {
	f.Add(position{"p", hashOf("x").String()}.token())
	f.Add("invalid-token")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseToken(s)
		if err != nil {
			if !errors.Is(err, ErrBadToken) {
				t.Fatalf("%v", err)
			}
			return
		}
		if p.token() != s {
			t.Fatalf("%q is not the token of %+v", s, p)
		}
	})
}

func FuzzAccount(f *testing.F) {
	p := &Pool{name: "p"}
	r := newRecord(p, Spec{Name: "v", Size: gib})
	o := p.newOperation(opGrow, r, 5)
	a := &account{accountStored: accountStored{Committed: 7, Operations: map[string]*operation{o.key: o}}}
	b, err := encodeObject(&a.accountStored, a.extra)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"format":1,"committed":1,"operations":{"x":null}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := decodeAccount(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrFormat) {
				t.Fatalf("no sentinel: %v", err)
			}
			return
		}
		if sum, fixed := a.reserved(); sum < a.Committed || fixed < 0 {
			t.Fatalf("%d, %d", sum, fixed)
		}
		out, err := encodeObject(&a.accountStored, a.extra)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeAccount(out); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
}

func FuzzNode(f *testing.F) {
	f.Add([]byte(`{"format":1,"id":"n1","bootId":"b","seen":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"format":1,"id":"n1","seen":"2026-01-01T00:00:00Z","endpoints":["10.0.0.1:9811","[fd00::1]:9811"],` +
		`"certificates":[{"sha256":"` + strings.Repeat("0a", 32) + `","until":"2026-01-08T00:00:00Z"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, _, err := decodeNode(b)
		if err == nil && (n.ID == "" || len(n.ID) > maxNodeID || n.fault() != "") {
			t.Fatalf("accepted: %+v", n)
		}
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrFormat) {
			t.Fatalf("no sentinel: %v", err)
		}
	})
}
