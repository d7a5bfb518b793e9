//go:build !race

package vhdx_test

const raceEnabled = false
