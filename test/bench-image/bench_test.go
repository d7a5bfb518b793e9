package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// This test program is also the control that it measures.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == plainCommand {
		main()
		return
	}
	os.Exit(m.Run())
}

// Every line runs, on small sizes, and nothing is left behind.
func TestQuick(t *testing.T) {
	vhdxctl := filepath.Join(t.TempDir(), "vhdxctl")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", vhdxctl, "../../cmd/vhdxctl").CombinedOutput(); err != nil {
		t.Fatalf("build vhdxctl: %v\n%s", err, out)
	}
	dir := t.TempDir()
	var out bytes.Buffer
	o := options{dir: dir, vhdxctl: vhdxctl, rounds: 1, quick: true, json: true, only: regexp.MustCompile("")}
	if err := run(t.Context(), o, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if want := len((&bench{o: o}).lines()); len(r.Results) != want {
		t.Fatalf("%d lines, want %d", len(r.Results), want)
	}
	for _, res := range r.Results {
		switch {
		case res.Skipped != "":
			t.Logf("%s: %s", res.Name, res.Skipped)
		case res.Ours <= 0, res.Peer != "" && (res.Theirs <= 0 || res.Ratio <= 0):
			t.Errorf("%s: no figures: %+v", res.Name, res)
		}
	}
	var text bytes.Buffer
	if err := r.print(&text); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A cancelled run leaves nothing either.
func TestInterrupted(t *testing.T) {
	dir := t.TempDir()
	o := options{dir: dir, vhdxctl: "/bin/false", rounds: 1, quick: true, only: regexp.MustCompile("^check|^open|dynamic")}
	if err := run(t.Context(), o, io.Discard, io.Discard); err == nil {
		t.Error("no error from a program that fails")
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The ratio is the median of the rounds' own, and counts the peer's sync.
func TestResult(t *testing.T) {
	f := func(took, sync time.Duration) figure {
		return figure{took: took * time.Second, sync: sync * time.Second}
	}
	r := row{line: line{name: "x", want: 1.5, theirs: &side{}}, ours: []figure{f(2, 0), f(1, 0), f(4, 0)}, theirs: []figure{f(2, 2), f(1, 1), f(4, 1)}}
	res := r.result()
	if res.Ratio != 2 || res.RatioUnsynced != 1 || res.Ours != 2 || res.Met == nil || !*res.Met {
		t.Errorf("%+v", res)
	}
	r.want = 2.1
	if res = r.result(); *res.Met {
		t.Errorf("2.0 meets 2.1: %+v", res)
	}
}
