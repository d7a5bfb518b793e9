//go:build !race

package fuseloop

const raceEnabled = false
