//go:build race

package sanity

const raceEnabled = true
