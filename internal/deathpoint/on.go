//go:build chaos

package deathpoint

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// shared opens the page once. A process that has been given none, or one that
// it cannot use, reaches no point: it says so and lives.
var shared = sync.OnceValue(func() *Page {
	path := os.Getenv(Variable)
	if path == "" {
		return nil
	}
	p, err := OpenPage(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, "deathpoint:", err)
	}
	return p
})

var byName = sync.OnceValue(func() map[string]Point {
	m := make(map[string]Point, End)
	for _, p := range All() {
		m[p.String()] = p
	}
	return m
})

// Reach says that the process has come to p, where it may have to die.
func Reach(p Point) {
	if page := shared(); page != nil && page.reach(p) {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL) // oneself one may always
		select {}                                // for the moment until then
	}
}

// Helper says that a helper child of that name has just been started.
func Helper(name string) {
	reachNamed(helperPrefix + name)
}

// Node says that pkg/node has come to a step.
func Node(step string) { reachNamed(nodePrefix + step) }

func reachNamed(name string) {
	if p := byName()[name]; p != none {
		Reach(p)
	}
}
