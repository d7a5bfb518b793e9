package vhdx

import (
	"fmt"
	"math/bits"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

const (
	defaultCreator            = "csi-driver-vhdx"
	defaultLogSize            = ondisk.MiB
	defaultLogicalSectorSize  = 512
	defaultPhysicalSectorSize = 4096
)

// complete fills in the defaults and rounds up what QEMU would round up. Each
// change of a given value is told; what cannot be made valid is refused.
func (o CreateOptions) complete() (Created, error) {
	c := Created{Options: o}
	for _, step := range []func() error{c.sectorSizes, c.size, c.blockSize, c.logSize, c.creator} {
		if err := step(); err != nil {
			return Created{}, err
		}
	}
	return c, nil
}

func invalid(option string, value any, valid string) error {
	return fmt.Errorf("%s %v: valid is %s: %w", option, value, valid, ErrInvalid)
}

func (c *Created) adjusted(option string, from, to int64, why string) {
	if from != to {
		c.Adjusted = append(c.Adjusted, fmt.Sprintf("%s %d rounded up to %d: %s", option, from, to, why))
	}
}

func (c *Created) sectorSizes() error {
	o := &c.Options
	if o.LogicalSectorSize == 0 {
		o.LogicalSectorSize = defaultLogicalSectorSize
	}
	if o.PhysicalSectorSize == 0 {
		o.PhysicalSectorSize = defaultPhysicalSectorSize
	}
	if s := o.LogicalSectorSize; s != 512 && s != 4096 {
		return invalid("logical sector size", s, "512 or 4096")
	}
	if s := o.PhysicalSectorSize; s != 512 && s != 4096 || s < o.LogicalSectorSize {
		return invalid("physical sector size", s, "512 or 4096, and not below the logical sector size")
	}
	return nil
}

func (c *Created) size() error {
	o := &c.Options
	if o.Size <= 0 || o.Size > ondisk.MaxVirtualSize {
		return invalid("size", o.Size, fmt.Sprintf("1 to %d (64 TiB)", int64(ondisk.MaxVirtualSize)))
	}
	given := o.Size
	o.Size = roundUp(o.Size, int64(o.LogicalSectorSize))
	c.adjusted("size", given, o.Size, fmt.Sprintf("a disk has whole sectors of %d bytes", o.LogicalSectorSize))
	return nil
}

func (c *Created) blockSize() error {
	o := &c.Options
	if o.BlockSize == 0 {
		o.BlockSize = defaultBlockSize(o.Size)
	}
	if o.BlockSize < 0 || o.BlockSize > ondisk.MaxBlockSize {
		return invalid("block size", o.BlockSize, fmt.Sprintf("a power of two from %d (1 MiB) to %d (256 MiB), or 0 for the default", ondisk.MinBlockSize, ondisk.MaxBlockSize))
	}
	given := o.BlockSize
	o.BlockSize = max(ondisk.MinBlockSize, int64(1)<<bits.Len64(uint64(o.BlockSize-1)))
	c.adjusted("block size", given, o.BlockSize, "it is a power of two of at least 1 MiB")
	return nil
}

// defaultBlockSize is QEMU's choice.
func defaultBlockSize(size int64) int64 {
	const gib = 1 << 30
	switch {
	case size <= gib:
		return 8 * ondisk.MiB
	case size <= 100*gib:
		return 16 * ondisk.MiB
	case size <= 32<<10*gib:
		return 32 * ondisk.MiB
	}
	return 64 * ondisk.MiB
}

func (c *Created) logSize() error {
	o := &c.Options
	if o.LogSize == 0 {
		o.LogSize = defaultLogSize
	}
	if o.LogSize < 0 || o.LogSize > ondisk.MaxLogLength {
		return invalid("log size", o.LogSize, fmt.Sprintf("a multiple of 1 MiB up to %d (1 GiB), or 0 for the default", ondisk.MaxLogLength))
	}
	given := o.LogSize
	o.LogSize = roundUp(o.LogSize, ondisk.MiB)
	c.adjusted("log size", given, o.LogSize, "it is a multiple of 1 MiB")
	return nil
}

func (c *Created) creator() error {
	o := &c.Options
	if o.Creator == "" {
		o.Creator = defaultCreator
	}
	if err := (ondisk.FileIdentifier{Creator: o.Creator}).Encode(make([]byte, ondisk.IdentifierSize)); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	return nil
}
