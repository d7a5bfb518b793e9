// Package deathpoint names the places at which the chaos test has the worker
// die.
//
// In a program built with the tag chaos, [Reach] counts and, when that very
// point has been armed, ends the process with SIGKILL right there: no deferred
// call, no second chance, as a crash would. What is armed stands in a page of
// memory that the test shares with every life of the worker: a file, named by
// the variable VHDX_DEATHPOINTS ([Variable]).
//
// In any other build Reach and Helper are empty and cost nothing: the compiler
// leaves their calls away.
//
// All points stand in points.go. A test proves that each of them is in the
// code, and the chaos test that each of them is reached.
package deathpoint
