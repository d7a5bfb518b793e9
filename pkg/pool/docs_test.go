package pool

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestLayoutPage: the examples of docs/reference/pool-layout.md are what this
// package reads, and every file and sentinel that an operator meets is there.
func TestLayoutPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/reference/pool-layout.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	blocks := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(page, -1)
	if len(blocks) != 2 {
		t.Fatalf("%d examples, want the record and the account", len(blocks))
	}
	const name = "pvc-7d9b8a52-0f3b-4c7e-9a51-3d2f6c1e8b40"
	r, err := decodeRecord([]byte(blocks[0][1]), "default", hashOf(name))
	if err != nil || r.name() != name || len(r.extra) > 0 {
		t.Fatalf("the record: %v", err)
	}
	if want := footprint(r.Size, r.Params); r.Committed != want {
		t.Fatalf("the record commits %d, footprint says %d", r.Committed, want)
	}
	if out, err := r.encode(); err != nil || string(out) != blocks[0][1] {
		t.Fatalf("the record is written as\n%s", out)
	}
	a, err := decodeAccount([]byte(blocks[1][1]))
	if err != nil || len(a.Operations) != 1 || len(a.extra) > 0 {
		t.Fatalf("the account: %v", err)
	}
	for _, word := range append([]string{
		fileMarker, fileAccount, fileLocks, fileBallast, ErrNotAPool.Error(), ErrDamaged.Error(), ErrInUse.Error(), ErrNoSpace.Error(), ErrUnsafeShare.Error(),
	}, directories...) {
		if !strings.Contains(page, word) {
			t.Errorf("%q is not mentioned", word)
		}
	}
	for fs, options := range unsafeOptions {
		for o := range options {
			if fs != "smb3" && !strings.Contains(page, "`"+o+"`") {
				t.Errorf("mount option %s of %s is not mentioned", o, fs)
			}
		}
	}
}
