package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// build builds plugin and demo once.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "vhdx-demo-build-")
	if err != nil {
		return "", err
	}
	builds = dir
	return dir, plugin.Build(dir, "vhdx-csi", "vhdx-demo")
})

var builds string // to be removed at the end

func TestMain(m *testing.M) {
	code := m.Run()
	if builds != "" {
		_ = os.RemoveAll(builds)
	}
	os.Exit(code)
}

func binaries(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts filesystems and makes loop devices")
	}
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// tidy fails if a demo that worked in a directory below parent left anything.
func tidy(t *testing.T, parent, output string) {
	t.Helper()
	var ids []string
	for _, m := range regexp.MustCompile(`volume (\S+), 2 GiB`).FindAllStringSubmatch(output, -1) {
		ids = append(ids, m[1])
	}
	left, err := plugin.Leftovers(parent, ids...)
	if err != nil || len(left) > 0 {
		t.Errorf("left on the machine (%v):\n%s", err, strings.Join(left, "\n"))
	}
	if files, err := os.ReadDir(parent); err != nil || len(files) > 0 {
		t.Errorf("left in %s: %v, %v", parent, files, err)
	}
}

// shortDir is a temporary directory whose path leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// TestDemo runs it to its end.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: the interrupted runs go through the same steps")
	}
	bin, dir := binaries(t), shortDir(t)
	out, err := exec.Command(filepath.Join(bin, "vhdx-demo"), "--dir="+dir).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("PASSED")) {
		t.Fatalf("%v\n%s", err, out)
	}
	tidy(t, dir, string(out))
}

// TestInterrupted sends Ctrl-C at moments of most steps, those that begin or
// end something above all.
func TestInterrupted(t *testing.T) {
	bin := binaries(t)
	at := map[int][]time.Duration{1: {0}, 2: {0, 50}, 3: {0, 30, 100}, 4: {100}, 5: {0, 50, 400}, 6: {0, 200}, 7: {0, 100}, 8: {0, 100}, 10: {0, 100}, 13: {0}}
	if testing.Short() {
		at = map[int][]time.Duration{3: {50}, 5: {50}, 6: {50}}
	}
	for n, delays := range at {
		for _, ms := range delays {
			delay := ms * time.Millisecond
			t.Run(fmt.Sprintf("step %d after %v", n, delay), func(t *testing.T) {
				interrupt(t, bin, n, delay)
			})
		}
	}
}

func interrupt(t *testing.T, bin string, n int, delay time.Duration) {
	dir := shortDir(t)
	cmd := exec.Command(filepath.Join(bin, "vhdx-demo"), "--dir="+dir)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for r := bufio.NewScanner(io.TeeReader(stdout, &out)); r.Scan(); {
		if strings.HasPrefix(r.Text(), fmt.Sprintf("[%d/", n)) {
			time.Sleep(delay)
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = cmd.Wait()
	exit, ok := errors.AsType[*exec.ExitError](err)
	late := n == len(steps) && err == nil // the last step had ended already
	if !late && (!ok || exit.ExitCode() != interrupted) {
		t.Errorf("it ended with %v\n%s%s", err, out.String(), stderr.String())
	}
	tidy(t, dir, out.String())
}

// TestReaderLeaves: a closed pipe ends the demo as Ctrl-C does.
func TestReaderLeaves(t *testing.T) {
	bin, dir := binaries(t), shortDir(t)
	cmd := exec.Command(filepath.Join(bin, "vhdx-demo"), "--dir="+dir)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for r := bufio.NewScanner(io.TeeReader(stdout, &out)); r.Scan(); {
		if strings.HasPrefix(r.Text(), "[4/") {
			break
		}
	}
	err = errors.Join(stdout.Close(), cmd.Wait())
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != interrupted {
		t.Errorf("it ended with %v", err)
	}
	tidy(t, dir, out.String())
}

// TestMismatch: data that has changed ends the demo with an error.
func TestMismatch(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it writes all files")
	}
	bin, dir := binaries(t), shortDir(t)
	saved := steps
	defer func() { steps = saved }()
	steps = slices.Concat(saved[:4], []step{{"Change a file behind the demo's back", func(d *demo, _ context.Context) (string, error) {
		return "", os.WriteFile(filepath.Join(d.v.Target, d.files[7].name), []byte("changed"), 0o600)
	}}}, saved[8:9])
	log, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	err = run(t.Context(), filepath.Join(bin, "vhdx-csi"), dir, log)
	if err == nil || !strings.Contains(err.Error(), "MISMATCH: file-07") {
		t.Errorf("got %v", err)
	}
	text, err := os.ReadFile(log.Name())
	if err != nil || strings.Contains(string(text), "PASSED") {
		t.Errorf("%v\n%s", err, text)
	}
	tidy(t, dir, string(text))
}
