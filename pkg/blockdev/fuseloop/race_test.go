//go:build race

package fuseloop

// The race detector allocates for its own ends.
const raceEnabled = true
