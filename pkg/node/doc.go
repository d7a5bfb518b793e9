// Package node keeps what one node has staged: the attachment journal, the
// devices, the filesystems on them and their mounts.
//
// # Vocabulary
//
// A volume is staged when its image is open in this process, its device is
// served, and (unless it is raw) its filesystem is mounted at the staging
// path. It is published when it also appears at a target path, by a bind
// mount. An entry is the journal's file for one volume. A leftover is an entry
// whose device this process does not serve: it is of an earlier process, or of
// a failed call whose effects could not be undone.
//
// A volume's life is what outlives the process that serves it: the descriptor
// on which the kernel's requests come, and the volatile journal of its image,
// both held by the keeper too. To resume a volume is to serve it where a
// process that died, or ended, has stopped. A volume that waits is one that can
// be resumed and is not yet: its requests wait as well, and none fails.
//
// # Order
//
//	stage    entry > open image > grow > wipe > attach > life at the keeper > entry with device >
//	         [use formatting > mkfs] > fsck > grow > mount > use mounted > entry says staged
//	unstage  umount > detach > close image > keeper lets go > remove entry
//	resume   what the keeper holds > open image with its journal > the entry's device, in-flight requests again
//	cut      [sync > entry says frozen > freeze] > writes wait > record names the new image > writes go on > [thaw]
//	publish  entry with target > directory or file > bind mount
//	unpublish  umount > remove directory or file > entry without target
//
// # Invariants
//
//	I-NODE-1  The entry is durable before the device exists, and gone only after it is.
//	I-NODE-2  The entry lists a path, and the device's number, durably before anything is mounted.
//	I-NODE-3  At start every entry is resumed, torn down, dropped or kept with a reason; nothing that an entry does not prove to be ours is touched.
//	I-NODE-4  mkfs runs only on a volume whose record says never and whose image is blank, or whose record says formatting and whose image holds no filesystem that may have been mounted.
//	I-NODE-5  The use formatting is durable before mkfs starts, the use mounted before Stage returns.
//	I-NODE-6  After a final error nothing of the call is left. What could not be undone keeps its entry, and the error is ErrUnfinished.
//	I-NODE-7  Nothing is unmounted lazily unless its device is proven dead: no writer is ever hidden.
//	I-NODE-8  A mount is ours only by the number of its device, never by a path's name.
//	I-NODE-9  What can wait on a served device runs in a helper process with a deadline.
//	I-NODE-10 One call at a time per volume; others are refused with ErrPending. Stats waits for nobody and starts one helper at most per volume.
//	I-NODE-11 A staged volume whose life the keeper holds is resumed with nothing unmounted, or waits.
//	          Only proof that it can never be served again ends that: its image was written by
//	          somebody else, its device or the keeper's item is gone, it is attached elsewhere.
//	I-NODE-12 A filesystem that this package froze is thawed at the latest when the limit of the freeze
//	          has passed: by a process that outlives this one, and by the next one's Recover. One that
//	          somebody else froze is not thawed.
//	I-NODE-13 Report and Volumes answer from memory. What a filesystem or the share has to be asked for,
//	          Watch asks beside them, with one helper at most per volume.
//
// Programs that use this package begin with helper.RunIfHelper(node.Commands()...).
package node
