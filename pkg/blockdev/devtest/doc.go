// Package devtest is the one conformance suite of all block backends, and the
// images it serves them: [MemImage], which fails, waits and remembers on
// demand, and [FileImage], whose ranges can be pinned.
//
// A backend's test calls [Run] once for each kind of image. The tests cite the
// invariants of package blockdev. They need root; on a machine without it they
// skip and say so.
//
// A test never opens, mounts or waits for a device itself (I-DEV-5): it serves
// the image, so that a test process which is killed could not end. A guest, a
// child of its own (guest.go), does what a process of the system would do, and
// tools do the rest.
package devtest
