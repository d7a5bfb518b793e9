//go:build !race

package sanity

const raceEnabled = false
