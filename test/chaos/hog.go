package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// hogName is the subcommand that makes this program a hog.
const hogName = "hog"

// The things that a hog does, as soon as its standard input says so.
const (
	hogHeap  = "heap"   // takes memory until it dies
	hogCache = "cache:" // reads a file through the page cache, over and over
	hogDirty = "dirty:" // writes a file through the page cache, over and over
)

// startHog starts a child that lives no longer than this process.
func startHog(g *memoryGroup, what string) (stop func(), err error) {
	cmd := exec.Command("/proc/self/exe", hogName, what)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a hog: %w", err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}
	if err := g.add(cmd.Process.Pid); err != nil {
		stop()
		return nil, err
	}
	if _, err := stdin.Write([]byte{1}); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// hog is the child's life. It ends with its parent, which holds the other end
// of its standard input.
func hog(what string) {
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadByte(); err != nil {
		os.Exit(0)
	}
	go func() {
		_, _ = io.Copy(io.Discard, in) // until the parent is gone
		os.Exit(0)
	}()
	buf := make([]byte, 1<<20)
	if what == hogHeap {
		var all [][]byte
		for {
			b := make([]byte, len(buf))
			for i := 0; i < len(b); i += pageSize {
				b[i] = 1
			}
			all = append(all, b)
			runtime.KeepAlive(all)
		}
	}
	path, reads := strings.CutPrefix(what, hogCache)
	if !reads {
		path = strings.TrimPrefix(what, hogDirty)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, "hog:", err)
		os.Exit(1)
	}
	for at := int64(0); ; at = (at + int64(len(buf))) % hogFile {
		if reads {
			_, err = f.ReadAt(buf, at)
		} else {
			_, err = f.WriteAt(buf, at)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "hog:", err)
			os.Exit(1)
		}
		time.Sleep(2 * time.Millisecond) // reclaim is wanted, not the whole processor
	}
}

const hogFile = 128 << 20
