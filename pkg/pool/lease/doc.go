// Package lease decides who may write an image.
//
// A lease is taken on the very open file description that all I/O of the image
// uses. Today it is an exclusive OFD lock over the whole file ([OFD]): the
// kernel drops it when the description's last I/O is done, and a filesystem
// that fences (NFSv4, SMB) refuses the I/O of a description whose lock it gave
// to somebody else. Epoch, heartbeat and takeover come behind the same
// interface; a holder already has to watch [Lease.Lost].
//
//	I-LEASE-1  At most one exclusive lease on an image exists, and none beside a shared one.
//	I-LEASE-2  The lock alone decides. The holder record is written after the
//	           lock is taken, removed before it is given up, and only ever read
//	           for a message.
package lease
