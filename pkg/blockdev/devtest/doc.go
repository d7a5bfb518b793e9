// Package devtest is the one conformance suite of all block backends, and the
// images it serves them: [MemImage], which fails, waits and remembers on
// demand, and [FileImage], whose ranges can be pinned.
//
// A backend's test calls [Run] once for each kind of image. The tests cite the
// invariants of package blockdev. They need root; on a machine without it they
// skip and say so.
//
// A test reads and writes the device from the process that serves it, which a
// real server must never do (I-DEV-5). It may here: the process is not killed,
// and the server's threads wait for nothing that the test does.
package devtest
