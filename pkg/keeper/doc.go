// Package keeper holds what must outlive the process that serves a volume:
// descriptors (/dev/fuse above all), volatile journals (memfds), and a few
// bytes that say what they are.
//
//	worker --Put(id, generation, meta, files)--> keeper     SOCK_SEQPACKET, one packet per request
//	  X  kill -9                                   |
//	successor --Get(id)--> the same open files ----'
//
// An item belongs to a volume id and has a generation: the number of the
// device's life, chosen by the client, greater with each new life or state.
//
// # Protocol
//
// The first packet each way is a hello, whose form never changes (hello in
// wire.go): the versions of the protocol that its sender speaks, and the name of its
// build. The highest version that both speak is used; without one both sides
// know, and say, who speaks what. Then the client sends a request and gets one
// answer, and so on. A packet has a fixed header (message in wire.go), an id, and a body
// of at most [MaxMeta] bytes; descriptors travel beside it (SCM_RIGHTS). A
// packet arrives whole or not at all, so a client that dies in the middle of
// a Put has not put anything.
//
// # Where it runs
//
// The keeper is as durable as whatever starts it lets it be: in a cluster a
// DaemonSet of its own, on one machine a process of its own session that
// [Maintain] starts. A client that finds the keeper dead keeps copies of what
// it has put, and gives them to the next one; so only the death of both costs
// the device. Where systemd runs it (NOTIFY_SOCKET), every item is in systemd's
// descriptor store too and comes back with LISTEN_FDS: set
// FileDescriptorStoreMax to 5 for each volume, and NotifyAccess=main.
//
// # Invariants
//
//	I-KEEP-1  What a Put that was answered gave lives until Drop or the keeper's end, whatever its client does.
//	I-KEEP-2  An item is replaced and dropped as a whole. There is no state between.
//	I-KEEP-3  An item's generation only grows. A Put or Drop with another generation than the newest is ErrStale and changes nothing.
//	I-KEEP-4  A descriptor of a device or a socket is closed by Drop alone: closing the last one of /dev/fuse kills its device.
//	I-KEEP-5  A held memfd cannot change its size, so that no mapping of it can fault.
//	I-KEEP-6  Only root is served.
//	I-KEEP-7  Clients, items, descriptors and bytes are bounded; whatever exceeds a bound is refused as a whole and leaves no descriptor.
//	I-KEEP-8  No client, and no close that takes long, keeps another client waiting.
//	I-KEEP-9  No file of a filesystem is ever held: it could wait for a share, and would hold its locks.
//	I-KEEP-10 Of the clients of one owner only the last is served: nothing that a dead worker sent happens after its successor's Dial.
//	I-KEEP-11 A keeper that holds something ends only by force.
package keeper
