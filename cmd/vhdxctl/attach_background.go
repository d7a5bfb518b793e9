package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// attachBackground starts the server as a process of its own session, and
// returns when its device is there.
func (a *app) attachBackground(path string, o attachOptions) error {
	if err := os.MkdirAll(o.runDir, 0o700); err != nil {
		return err
	}
	// What the server says until it serves is told; afterwards nobody listens.
	messages, err := os.CreateTemp(o.runDir, ".messages-*")
	if err != nil {
		return err
	}
	defer messages.Close()
	defer os.Remove(messages.Name()) //nolint:errcheck // an empty file in /run
	line, err := startServer(a.serverArgs(path, o), messages)
	said, readErr := os.ReadFile(messages.Name())
	if readErr == nil {
		_, _ = a.errOut.Write(said)
	}
	if err != nil {
		if len(said) > 0 {
			return exitError(exitFailed) // it has said why
		}
		return err
	}
	_, err = io.WriteString(a.out, line)
	return err
}

// serverArgs is the command line of the server.
func (a *app) serverArgs(path string, o attachOptions) []string {
	args := []string{"attach", "--run-dir", o.runDir}
	if a.json {
		args = append(args, "--json")
	}
	if a.parents != "" {
		args = append(args, "--parents", a.parents)
	}
	if o.readOnly {
		args = append(args, "--read-only")
	}
	return append(args, "--", path)
}

// startServer returns what the server prints once its device is there.
func startServer(args []string, messages *os.File) (string, error) {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = filepath.Base(os.Args[0])
	cmd.Stderr = messages
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	said, err := readAnswer(out)
	if err != nil {
		return "", errors.Join(fmt.Errorf("the server ended before its device was there: %w", err), cmd.Wait())
	}
	return said, cmd.Process.Release()
}

// readAnswer reads one line, or one JSON object.
func readAnswer(r io.Reader) (string, error) {
	var said strings.Builder
	b := bufio.NewReader(r)
	for {
		line, err := b.ReadString('\n')
		said.WriteString(line)
		if err != nil {
			return said.String(), err
		}
		if !strings.HasPrefix(said.String(), "{") || line == "}\n" {
			return said.String(), nil
		}
	}
}
