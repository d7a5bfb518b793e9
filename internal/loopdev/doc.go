// Package loopdev sets up, finds and removes loop devices.
//
// A loop device here is recognised by its tag: the name of its backing file,
// and what lo_file_name says. sysfs tells the former without asking the file
// system the file lives on, so a search never waits for a dead server.
//
// What may wait for the server of the backing file, and must therefore run in
// a helper process if this process is the server:
//
//	Attach       opens nothing itself, but LOOP_CONFIGURE asks for size, alignment and statfs
//	Begin        the same
//	Settle, Stay wait for requests in flight
//	Detach       closing a device writes its dirty pages; so does fsync
//	Alive        LOOP_GET_STATUS64 asks for the attributes
//	SetCapacity  asks for the size and waits for requests in flight
//
// [List], [Find], [Identify] and [Leaving] only read sysfs and never wait.
//
// Why Detach does not simply use LOOP_CLR_FD: on a device that is open
// elsewhere it succeeds and only marks it for removal; on one that is not, it
// fails the pages that are still to be written. So Detach opens exclusively
// (which a mount or another exclusive owner forbids), syncs, sets the
// autoclear flag and closes: the kernel then writes what is dirty and removes
// the device with the last close. If somebody had it open the device is still
// there; the flag is taken back and the answer is [ErrBusy].
package loopdev
