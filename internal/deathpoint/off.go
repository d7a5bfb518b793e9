//go:build !chaos

package deathpoint

// Reach says that the process has come to p.
func Reach(Point) {}

// Helper says that a helper child of that name has just been started.
func Helper(string) {}

// Node says that pkg/node has come to a step.
func Node(string) {}
