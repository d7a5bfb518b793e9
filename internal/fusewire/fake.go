package fusewire

// What the kernel encodes. Only tests and benchmarks use these: they play the
// kernel's part, and prove that the decoders read what the kernel writes.

// Put encodes h for a message whose arguments and data are n bytes long.
func (h InHeader) Put(b []byte, n int) int {
	clear(b[:SizeInHeader])
	host.PutUint32(b[0:], uint32(SizeInHeader+n))
	host.PutUint32(b[4:], uint32(h.Opcode))
	host.PutUint64(b[8:], h.Unique)
	host.PutUint64(b[16:], h.NodeID)
	host.PutUint32(b[24:], h.UID)
	host.PutUint32(b[28:], h.GID)
	host.PutUint32(b[32:], h.PID)
	host.PutUint16(b[36:], h.ExtLen)
	return SizeInHeader
}

// Put encodes r.
func (r ReadIn) Put(b []byte) int {
	clear(b[:SizeReadIn])
	host.PutUint64(b[8:], r.Offset)
	host.PutUint32(b[16:], r.Size)
	return SizeReadIn
}

// Put encodes f.
func (f FallocateIn) Put(b []byte) int {
	clear(b[:SizeFallocateIn])
	host.PutUint64(b[8:], f.Offset)
	host.PutUint64(b[16:], f.Length)
	host.PutUint32(b[24:], f.Mode)
	return SizeFallocateIn
}

// Put encodes i.
func (i InitIn) Put(b []byte) int {
	clear(b[:SizeInitIn])
	host.PutUint32(b[0:], i.Major)
	host.PutUint32(b[4:], i.Minor)
	host.PutUint32(b[8:], i.MaxReadahead)
	host.PutUint32(b[12:], uint32(i.Flags))
	host.PutUint32(b[16:], uint32(i.Flags>>32))
	return SizeInitIn
}

// DecodeInitOut reads a reply to INIT.
func DecodeInitOut(b []byte) (InitOut, error) {
	if len(b) < SizeInitOut {
		return InitOut{}, short("fuse_init_out", len(b), SizeInitOut)
	}
	return InitOut{
		Minor:               host.Uint32(b[4:]),
		MaxReadahead:        host.Uint32(b[8:]),
		Flags:               uint64(host.Uint32(b[12:])) | uint64(host.Uint32(b[32:]))<<32,
		MaxBackground:       host.Uint16(b[16:]),
		CongestionThreshold: host.Uint16(b[18:]),
		MaxWrite:            host.Uint32(b[20:]),
		MaxPages:            host.Uint16(b[28:]),
	}, nil
}
