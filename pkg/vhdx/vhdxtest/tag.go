package vhdxtest

import (
	"encoding/binary"
	"fmt"
)

// SectorSize is what the model counts in: the smallest piece of data that a
// power cut leaves whole.
const SectorSize = 512

// A sector the model writes is full of tags of 32 bytes:
//
//	0   8  tagMagic + number of the tag in the sector
//	8   8  world: the model
//	16  8  sector of the virtual disk
//	24  8  generation: which write
const (
	tagSize  = 32
	tagMagic = 0x7a6f_6e6b_5461_6700
)

// tag is who wrote a sector.
type tag struct {
	world, sector uint64
	gen           generation
}

// generation numbers the writes of a model. 0: zeros.
type generation uint64

// fill writes t over a sector.
func (t tag) fill(p []byte) {
	for i := range SectorSize / tagSize {
		b := p[i*tagSize : (i+1)*tagSize]
		binary.LittleEndian.PutUint64(b, tagMagic+uint64(i))
		binary.LittleEndian.PutUint64(b[8:], t.world)
		binary.LittleEndian.PutUint64(b[16:], t.sector)
		binary.LittleEndian.PutUint64(b[24:], uint64(t.gen))
	}
}

// read returns the tag a sector is full of; ok is false where it is not.
func readTag(p []byte) (t tag, ok bool) {
	t = tag{
		world:  binary.LittleEndian.Uint64(p[8:]),
		sector: binary.LittleEndian.Uint64(p[16:]),
		gen:    generation(binary.LittleEndian.Uint64(p[24:])),
	}
	var want [SectorSize]byte
	t.fill(want[:])
	return t, want == [SectorSize]byte(p[:SectorSize])
}

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), pageSize)
		if string(p[:n]) != string(zeroPage[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// describe names the content of a sector for a person.
func describe(p []byte) string {
	if isZero(p[:SectorSize]) {
		return "zeros"
	}
	if t, ok := readTag(p); ok {
		return fmt.Sprintf("sector %#x generation %d of model %#x", t.sector, t.gen, t.world)
	}
	for i := 0; i < SectorSize; i += tagSize {
		if binary.LittleEndian.Uint64(p[i:]) == tagMagic+uint64(i/tagSize) {
			return fmt.Sprintf("a mix with a piece of sector %#x generation %d of model %#x",
				binary.LittleEndian.Uint64(p[i+16:]), binary.LittleEndian.Uint64(p[i+24:]), binary.LittleEndian.Uint64(p[i+8:]))
		}
	}
	return fmt.Sprintf("unknown bytes % x...", p[:16])
}
