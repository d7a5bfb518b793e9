// Package fusewire encodes and decodes the part of the FUSE kernel protocol
// that a server of one regular file needs. No I/O happens here.
//
// Names are the kernel's (struct fuse_in_header is [InHeader], FUSE_READ is
// [OpRead]). Every structure is in the byte order of the host, for both ends
// of /dev/fuse are on one machine.
//
// One request, as a read of /dev/fuse returns it, and its one reply, as one
// write to /dev/fuse:
//
//	+-----------+---------------------+----------------+     +------------+-----------------+
//	| in_header | in of the operation | data of WRITE  |     | out_header | out, or data    |
//	| 40 bytes  | 8 to 64 bytes       |                | --> | 16 bytes   | none on error   |
//	+-----------+---------------------+----------------+     +------------+-----------------+
//
// FORGET, BATCH_FORGET and INTERRUPT have no reply. A notification is a reply
// whose unique is 0 and whose error is the code.
//
// Invariants:
//
//	I-FUSE-1  Decoders answer [ErrShort] for fewer bytes than the structure has and read nothing beyond them.
//	I-FUSE-2  Encode then decode is the identity, and sizes are the kernel's.
//	I-FUSE-3  A reply carries the unique id of its request with all 64 bits; bit 63 marks one that was sent again.
package fusewire
