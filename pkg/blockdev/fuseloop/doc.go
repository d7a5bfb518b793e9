// Package fuseloop makes a block device from an image with nothing but FUSE
// and loop, which every kernel has.
//
//	block device /dev/loopN            direct I/O, blocks of the image's logical sector size
//	  | loop driver
//	file "csi-vhdx-<hash of the id>"   of a detached FUSE mount: in no mount table
//	  | /dev/fuse, one descriptor
//	this process: engine  --- Pin ---> ring: payload straight between /dev/fuse's buffers and the image's descriptor
//	                      --- else --> slow goroutines: the Image's methods
//
// The parts:
//
//	Attacher, Device   the life of a device; children do whatever may wait on it (commands.go)
//	negotiate          the FUSE handshake, once in the life of a connection
//	session            what a serving loop needs to know; works on any initialised descriptor
//	engine             one thread, one io_uring: owns the descriptor, the buffers and every request
//	slowPool           what the engine's ring cannot do, and everything where there is no ring (poll.go)
//	held               requests that wait for space (pause.go) or for their limit (delay.go); nobody works on them
//
// A request takes one of two ways. READ and WRITE of a range that the image
// can pin are done by the ring, on the image's own descriptor, without a lock
// or an allocation. Everything else (a block without space, a range over two
// blocks, FSYNC, FALLOCATE, less than the descriptor's alignment) goes to a
// bounded pool of goroutines, which call the image and hand the request back.
// There are three pools, so that a write that waits for the storage holds up
// neither a flush nor a read. A change that the storage has no space for comes
// back from either way, and is held by the engine.
//
// Invariants, besides those of blockdev:
//
//	I-FL-1  A request belongs to one party at a time: the engine, the kernel (an operation of the ring under way), or one slow goroutine.
//	I-FL-2  Every request is answered exactly once, with all 64 bits of its id; FORGET and INTERRUPT never. One that is held when serving ends is not: it is the next server's.
//	I-FL-3  What changes a range narrower than the descriptor's alignment never runs beside another change of the same aligned unit: the image reads, changes and writes back the whole unit.
//	I-FL-4  Memory that the kernel copies to or from is locked and outside the Go heap.
//	I-FL-5  A buffer is used again only when no operation on it is under way.
//	I-FL-6  The serving process opens neither the FUSE file nor the device nor the mount.
//	I-FL-7  FSYNC, FALLOCATE, READ and WRITE never answer ENOSYS: the kernel would stop sending them.
//	I-FL-8  What may wait on a device runs in a child with a deadline. A child abandoned in the kernel is reported, and while it is there its volume gets no other one.
//	I-FL-9  A held request is in the hands of no goroutine, operation or thread: ending, releasing and judging the engine wait for none of them.
//
// Kernel: Linux 5.17 (FUSE 7.36). From 6.1 on with the ring. A successor that
// takes a descriptor over needs 6.9.4 (resend.go).
//
// A device comes into being in a child that has it removed with its own death
// (mount.go, childAttach), until everything a successor needs (kept.go) has been
// given away:
//
//	server   open /dev/fuse -- INIT ------------------------- kept -- settle --.
//	child    mount nowhere -'  LOOP_CONFIGURE (autoclear) -'            no autoclear
//
// What this stack cannot do: loop handles one flush at a time, and FUSE keeps
// the file locked meanwhile, so a flush that waits holds up writes. 128 requests
// that wait exhaust the engine's places and the device's tags, and reads and
// flushes wait with them; a request has at most 256 KiB, and the kernel cuts
// larger ones. The device
// reports its logical block size as its physical one.
package fuseloop
