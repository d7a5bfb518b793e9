//go:build race

package vhdx_test

// raceEnabled: the race detector makes judging an image some thirty times
// slower, and there is little to detect where one goroutine works at a time.
const raceEnabled = true
