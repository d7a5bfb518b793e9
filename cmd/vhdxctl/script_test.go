package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/fuseloop"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

func TestMain(m *testing.M) {
	helper.RunIfHelper(fuseloop.Commands()...)
	if os.Getenv(envExport) != "" {
		main()
	}
	testscript.Main(m, map[string]func(){"vhdxctl": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"status":    cmdStatus,
			"field":     cmdField,
			"first":     cmdFirst,
			"dirty":     unforked(cmdDirty),
			"patch":     cmdPatch,
			"locked":    cmdLocked,
			"content":   unforked(cmdContent),
			"raw":       cmdRaw,
			"kept":      unforked(cmdKept),
			"killed":    cmdKilled,
			"zero":      unforked(cmdZero),
			"copybytes": cmdCopyBytes,
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			if name, ok := strings.CutPrefix(cond, "oracle:"); ok {
				_, err := exec.LookPath(name)
				if err != nil && os.Getenv("CI") == "true" {
					return false, err
				}
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	})
}

// setup has a script's processes end fast, where the race detector is built
// in, and removes what a script that failed has left attached.
func setup(env *testscript.Env) error {
	env.Setenv("GORACE", "atexit_sleep_ms=0")
	dir := filepath.Join(env.WorkDir, "run")
	env.Defer(func() {
		found, err := seats(dir)
		for name, r := range found {
			a := &app{out: io.Discard, errOut: io.Discard}
			err = errors.Join(err, a.detach(context.Background(), dir, r.Device))
			_ = os.Remove(name + ".json")
		}
		if err != nil {
			env.T().Log("detach what is left: ", err)
		}
	})
	return nil
}

// cmdKilled kills the server of an attached image: killed RUNDIR IMAGE.
func cmdKilled(ts *testscript.TestScript, _ bool, args []string) {
	name, r, err := findSeat(ts.MkAbs(args[0]), ts.MkAbs(args[1]))
	ts.Check(err)
	p, err := os.FindProcess(r.PID)
	ts.Check(err)
	ts.Check(p.Kill())
	for range 200 {
		if conn, err := net.Dial("unix", name+".sock"); err != nil {
			return
		} else if err := conn.Close(); err != nil {
			ts.Fatalf("%v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	ts.Fatalf("process %d still serves", r.PID)
}

// cmdStatus runs a command that must exit with a code: status CODE COMMAND...
func cmdStatus(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// cmdField checks a field of JSON: field stdout|stderr NAME[.NAME] WANT.
func cmdField(ts *testscript.TestScript, neg bool, args []string) {
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &v))
	for _, name := range strings.Split(args[1], ".") {
		object, ok := v.(map[string]any)
		if !ok {
			ts.Fatalf("%s: %v is no object", args[1], v)
		}
		if v, ok = object[name]; !ok {
			ts.Fatalf("no field %s", args[1])
		}
	}
	got, err := json.Marshal(v)
	ts.Check(err)
	if (string(got) == args[2]) == neg {
		ts.Fatalf("%s is %s", args[1], got)
	}
}

// cmdFirst puts a field of the first object of a JSON list into a variable:
// first stdout NAME VARIABLE.
func cmdFirst(ts *testscript.TestScript, _ bool, args []string) {
	var list []map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &list))
	if len(list) == 0 {
		ts.Fatalf("the list is empty")
	}
	ts.Setenv(args[2], fmt.Sprint(list[0][args[1]]))
}

// cmdDirty writes to an image and leaves a copy as a power cut would: dirty
// IMAGE COPY.
func cmdDirty(ts *testscript.TestScript, _ bool, args []string) {
	im, err := vhdx.OpenPath(ts.MkAbs(args[0]), vhdx.OpenOptions{GrowthStep: 1 << 20, Parents: vhdx.ParentsIn(filepath.Dir(ts.MkAbs(args[0])))})
	ts.Check(err)
	_, err = im.WriteAt([]byte(strings.Repeat("power cut ", 512)[:4096]), 1<<20)
	ts.Check(err)
	ts.Check(im.Flush())
	data, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), data, 0o600))
	ts.Check(im.Close())
}

// cmdContent checks what cmdDirty wrote: content IMAGE.
func cmdContent(ts *testscript.TestScript, _ bool, args []string) {
	im, err := vhdx.OpenPath(ts.MkAbs(args[0]), vhdx.OpenOptions{ReadOnly: true, RefuseDirty: true})
	ts.Check(err)
	p := make([]byte, 4096)
	_, err = im.ReadAt(p, 1<<20)
	ts.Check(errors.Join(err, im.Close()))
	if !strings.HasPrefix(string(p), "power cut power cut ") {
		ts.Fatalf("content %q", p[:20])
	}
}

// cmdPatch overwrites bytes of a file: patch FILE OFFSET BYTES.
func cmdPatch(ts *testscript.TestScript, _ bool, args []string) {
	off, err := strconv.ParseInt(args[1], 0, 64)
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	_, err = f.WriteAt([]byte(args[2]), off)
	ts.Check(errors.Join(err, f.Close()))
}

// cmdZero zeroes bytes of a file: zero FILE OFFSET COUNT.
func cmdZero(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.ParseInt(args[2], 0, 64)
	ts.Check(err)
	cmdPatch(ts, false, []string{args[0], args[1], strings.Repeat("\x00", int(n))})
}

// cmdCopyBytes copies bytes within a file: copybytes FILE FROM TO COUNT.
func cmdCopyBytes(ts *testscript.TestScript, _ bool, args []string) {
	from, err := strconv.ParseInt(args[1], 0, 64)
	ts.Check(err)
	n, err := strconv.ParseInt(args[3], 0, 64)
	ts.Check(err)
	data, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	cmdPatch(ts, false, []string{args[0], args[2], string(data[from : from+n])})
}

// cmdLocked runs the rest of the line while an image is open: locked IMAGE COMMAND...
func cmdLocked(ts *testscript.TestScript, _ bool, args []string) {
	im, err := vhdx.OpenPath(ts.MkAbs(args[0]), vhdx.OpenOptions{})
	ts.Check(err)
	defer func() {
		_ = im.Close()
		syscall.ForkLock.Lock() // see unforked
		defer syscall.ForkLock.Unlock()
	}()
	cmdStatus(ts, false, args[1:])
}

// unforked runs a command while no process is started: one that another script
// starts has this process's open files until its program runs, and with them
// the locks of images.
func unforked(cmd func(*testscript.TestScript, bool, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		cmd(ts, neg, args)
	}
}

// cmdRaw makes a sparse raw file: raw FILE SIZE OFFSET:LENGTH..., the ranges
// with bytes that tell their place.
func cmdRaw(ts *testscript.TestScript, _ bool, args []string) {
	size, err := parseSize(args[1])
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(f.Truncate(size))
	for _, arg := range args[2:] {
		off, n, _ := strings.Cut(arg, ":")
		at, err := parseSize(off)
		ts.Check(err)
		length, err := parseSize(n)
		ts.Check(err)
		p := make([]byte, length)
		for i := range p {
			p[i] = byte((at+int64(i))/512 + 1)
		}
		_, err = f.WriteAt(p, at)
		ts.Check(err)
	}
	ts.Check(f.Close())
}

// cmdKept leaves what a copy that was killed after SIZE bytes would: kept
// SOURCE TARGET SIZE.
func cmdKept(ts *testscript.TestScript, _ bool, args []string) {
	size, err := parseSize(args[2])
	ts.Check(err)
	var out, errOut strings.Builder
	a := &app{out: &out, errOut: &errOut}
	c := &conversion{app: a, from: ts.MkAbs(args[0]), to: ts.MkAbs(args[1])}
	ts.Check(c.check())
	src, err := a.openSource(c.from, "")
	ts.Check(err)
	defer src.Close()
	id, err := c.identify(src)
	ts.Check(err)
	n := note{Source: id, Format: c.format}
	t, err := c.openPartial(n, src)
	ts.Check(err)
	p := make([]byte, size)
	_, err = src.ReadAt(p, 0)
	ts.Check(err)
	_, err = t.WriteAt(p, 0)
	ts.Check(errors.Join(err, t.Flush()))
	n.Done = size
	ts.Check(errors.Join(c.writeNote(n), t.Close()))
}
