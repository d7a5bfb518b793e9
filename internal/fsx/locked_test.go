package fsx

import (
	"os"
	"testing"
)

func TestLocked(t *testing.T) {
	tree, _ := newTree(t)
	if err := tree.Replace("d/f", nil); err != nil {
		t.Fatal(err)
	}
	open := func(flag int) *os.File {
		f, err := tree.Open("d/f", flag, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	holder, looker := open(os.O_RDWR), open(os.O_RDONLY)
	check := func(what string, f *os.File, want bool) {
		t.Helper()
		if got, err := Locked(f, Whole); got != want || err != nil {
			t.Fatalf("%s: %v, %v", what, got, err)
		}
	}
	check("free", looker, false)
	for _, exclusive := range []bool{true, false} {
		if err := TryLock(holder, Whole, exclusive); err != nil {
			t.Fatal(err)
		}
		check("held", looker, true)
		check("its own", holder, false)
	}
	if err := Unlock(holder, Whole); err != nil {
		t.Fatal(err)
	}
	check("given up", looker, false)
	// A look takes nothing.
	if err := TryLock(holder, Whole, true); err != nil {
		t.Fatal(err)
	}
	looker.Close()
	if _, err := Locked(looker, Whole); err == nil {
		t.Fatal("a closed file was looked at")
	}
}
