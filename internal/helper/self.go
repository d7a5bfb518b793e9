package helper

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
)

const (
	// selfName is argv[0] of a child that is this program again. An argument,
	// unlike a variable of the environment, does not leak into its children.
	selfName = "vhdx-helper"
	// exitErrno is added to the errno a Command failed with to make its exit code.
	exitErrno = 64
)

// Command is a function of this program that runs in a child process.
type Command struct {
	Name string
	Run  func(c *Child) error
}

// Child is what a Command gets.
type Child struct {
	Args   []string
	Stdin  io.Reader
	Stdout io.Writer // the answer; buffered, and written out when Run returns
}

// File is the i-th of Call.Files.
func (c *Child) File(i int) *os.File { return os.NewFile(uintptr(3+i), fmt.Sprintf("file %d", i)) }

var wired struct {
	sync.Mutex
	names map[string]bool
}

// RunIfHelper is the first call of main. In a child that [RunSelf] started it
// runs the command and exits; else it remembers the commands and returns.
func RunIfHelper(commands ...Command) {
	if len(os.Args) >= 2 && os.Args[0] == selfName {
		os.Exit(runChild(commands, os.Args[1], os.Args[2:]))
	}
	wired.Lock()
	defer wired.Unlock()
	wired.names = make(map[string]bool, len(commands))
	for _, c := range commands {
		wired.names[c.Name] = true
	}
}

func registered(name string) bool {
	wired.Lock()
	defer wired.Unlock()
	return wired.names[name]
}

func runChild(commands []Command, name string, args []string) int {
	for _, c := range commands {
		if c.Name != name {
			continue
		}
		out := bufio.NewWriter(os.Stdout)
		err := c.Run(&Child{Args: args, Stdin: os.Stdin, Stdout: out})
		err = errors.Join(err, out.Flush())
		if err == nil {
			return 0
		}
		_, _ = fmt.Fprintln(os.Stderr, err)
		if errno, ok := errors.AsType[syscall.Errno](err); ok && errno > 0 && errno < 256-exitErrno {
			return exitErrno + int(errno)
		}
		return 1
	}
	_, _ = fmt.Fprintf(os.Stderr, "helper command %q: %v\n", name, ErrNotWired)
	return 1
}
