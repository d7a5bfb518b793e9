package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// superblock is what the first bytes of a device say about its filesystem. It
// is read from the image, before there is a device: so an error of reading is
// an error of reading, never "nothing found".
type superblock struct {
	fsType string // "": none that this package knows
	// finished: mkfs reached its end. mkfs.xfs clears sb_inprogress last,
	// mkfs.btrfs writes the magic number last, mke2fs the superblock itself.
	finished bool
	// unused: finished and surely never mounted. Only ext4 tells: its mount
	// writes time and count into the superblock before it returns.
	unused bool
	// size is how many bytes of its device the filesystem uses; ext4 has more to say.
	size int64
	ext4 *ext4Geometry
}

// minBtrfsResize is what the kernel wants a btrfs to have that is resized.
const minBtrfsResize = 256 << 20

// ext4Geometry is what decides whether resize2fs would add a block.
type ext4Geometry struct {
	blocks, firstBlock     int64
	blockSize              int64
	perGroup, inodesPer    int64
	inodeSize, reservedGDT int64
}

// Offsets from the beginning of the device.
const (
	ext4Super  = 0x400
	btrfsSuper = 0x10000
	superBytes = btrfsSuper + 0x1000
)

// readSuperblock looks for the wanted filesystem first: an old signature of
// another one may be left where the wanted one writes nothing.
func readSuperblock(r io.ReaderAt, size int64, want string) (superblock, error) {
	b := make([]byte, superBytes)
	n := min(size, superBytes)
	if _, err := r.ReadAt(b[:n], 0); err != nil && !errors.Is(err, io.EOF) {
		return superblock{}, fmt.Errorf("read superblock: %w", err)
	}
	if s := parseSuperblock(b, want); s.fsType != "" {
		return s, nil
	}
	for _, t := range []string{"ext4", "xfs", "btrfs"} {
		if s := parseSuperblock(b, t); s.fsType != "" {
			return s, nil
		}
	}
	return superblock{}, nil
}

func parseSuperblock(b []byte, fsType string) superblock {
	switch fsType {
	case "ext4":
		return parseExt4(b[ext4Super : ext4Super+0x400])
	case "xfs":
		if string(b[:4]) != "XFSB" {
			return superblock{}
		}
		return superblock{
			fsType: "xfs", finished: b[126] == 0, // sb_inprogress
			size: int64(binary.BigEndian.Uint64(b[8:]) * uint64(binary.BigEndian.Uint32(b[4:]))), // sb_dblocks, sb_blocksize
		}
	case "btrfs":
		if string(b[btrfsSuper+0x40:btrfsSuper+0x48]) != "_BHRfS_M" {
			return superblock{}
		}
		// dev_item.total_bytes
		return superblock{fsType: "btrfs", finished: true, size: int64(binary.LittleEndian.Uint64(b[btrfsSuper+0xD1:]))}
	}
	return superblock{}
}

// parseExt4 reads struct ext4_super_block. ext2 and ext3 are found too, as
// what they are: they lack extents or a journal.
func parseExt4(b []byte) superblock {
	le := binary.LittleEndian
	if le.Uint16(b[0x38:]) != 0xEF53 {
		return superblock{}
	}
	compat, incompat := le.Uint32(b[0x5C:]), le.Uint32(b[0x60:])
	s := superblock{fsType: "ext4", finished: true}
	if incompat&0x40 == 0 { // extents
		s.fsType = "ext2"
		if compat&0x4 != 0 { // has_journal
			s.fsType = "ext3"
		}
	}
	// s_mtime and s_mnt_count
	s.unused = le.Uint32(b[0x2C:]) == 0 && le.Uint16(b[0x34:]) == 0
	g := &ext4Geometry{
		blocks:      int64(le.Uint32(b[0x4:])),
		firstBlock:  int64(le.Uint32(b[0x14:])),
		perGroup:    int64(le.Uint32(b[0x20:])),
		inodesPer:   int64(le.Uint32(b[0x28:])),
		inodeSize:   int64(le.Uint16(b[0x58:])),
		reservedGDT: int64(le.Uint16(b[0xCE:])),
	}
	if incompat&0x80 != 0 { // 64bit
		g.blocks |= int64(le.Uint32(b[0x150:])&0x7fffffff) << 32
	}
	if shift := le.Uint32(b[0x18:]); shift <= 6 && g.perGroup > 0 && g.firstBlock <= 1 {
		g.blockSize = 1024 << shift
		s.ext4 = g
	}
	return s
}

// growable reports whether the filesystem would become larger on a device of
// this size.
func (s superblock) growable(deviceSize int64) bool {
	const unit = 4096
	switch s.fsType {
	case "ext4":
		return s.ext4.growable(deviceSize)
	case "xfs", "btrfs":
		return deviceSize/unit > s.size/unit
	}
	return false
}

// growable is what resize2fs thinks. A last group that is too small to hold
// its own tables stays unused: trying it anew at every stage would cost a full
// check each time.
func (g *ext4Geometry) growable(deviceSize int64) bool {
	if g == nil {
		return false
	}
	blocks := deviceSize / g.blockSize
	last := (blocks - g.firstBlock) % g.perGroup
	tables := (g.inodesPer*g.inodeSize + g.blockSize - 1) / g.blockSize
	if last < 2+1+g.reservedGDT+tables+50 {
		blocks -= last
	}
	return blocks > g.blocks
}
