// Package helper runs what may block for ever in processes of its own.
//
// A thread that waits on a block device which its own process serves makes the
// process impossible to kill and to replace: the wait ends only when the
// device answers, and the device answers only when the process does. So every
// call that can wait on a served device (mount, umount, mkfs, fsck, statfs,
// FIFREEZE, sync, an open or close of the device, most loop ioctls) runs in a
// child with a deadline. Two kinds of child:
//
//   - a tool: helper.Run(ctx, time.Minute, "mkfs.ext4", "-F", dev)
//   - a function of this program: helper.RunSelf(ctx, time.Second, "loop-detach", "/dev/loop7"),
//     which starts this same executable again.
//
// For the second kind main begins, before it parses a flag, with
//
//	helper.RunIfHelper(slices.Concat(fuseloop.Commands(), node.Commands())...)
//
// and so does TestMain of every test binary that uses one. In the child that
// call runs the named function and exits; in the parent it only remembers the
// names. Without it RunSelf answers [ErrNotWired] instead of starting the
// whole program a second time.
//
// What comes back:
//
//   - nil and what the child wrote to standard output (at most 1 MiB of it);
//   - *[ExitError]: it ran and failed; exit code, signal, end of standard error.
//     If a function of this program failed with an errno, errors.Is(err, unix.EBUSY) tells;
//   - [ErrDeadline], or the context's error: it was killed, and is gone;
//   - *[StuckError], which is [ErrStuck] and ErrDeadline or the context's error
//     too: it was killed and does not go away. It waits in the kernel, and is
//     abandoned: nobody waits for it, whatever it holds stays held until it
//     ends, and StuckError.Gone tells when that is.
//
// Invariants:
//
//	I-HLP-1  Run returns at most KillGrace after the deadline or the end of the context, whatever the child does.
//	I-HLP-2  A child that is not stuck has been reaped, with its process group killed if it did not end by itself, when Run returns.
//	I-HLP-3  A child dies with the process that started it. One that waits in the kernel dies when that wait ends: with [Hold] a successor can wait for it.
//	I-HLP-4  A child has no descriptor of the parent but the three standard ones, Call.Files and what [Hold] gives, and never waits for input.
package helper
