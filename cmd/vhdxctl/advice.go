package main

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// advices says what to do about an error, most particular first.
var advices = []struct {
	is     error
	advice string
}{
	{errKept, "What has been copied is kept. The same command goes on from there; to give it up, remove the two .partial files."},
	{errOtherSource, "Give the old copy up by removing the two .partial files, then run this again."},
	{errHalfWritten, "Run the command again before the target is used."},
	{errTargetExists, "Nothing was replaced. Choose another name, replace the file with --overwrite, or write into it with -n."},
	{errOverwritten, "What was written until then is in the image, which is consistent."},
	{errShrink, "Shrink what is on the disk first, then: vhdxctl resize --shrink PATH SIZE."},
	{vhdx.ErrDataBeyondEnd, "Nothing was changed. Shrink filesystems and partitions first; --cut-data cuts off what is there."},
	{errCompactedInPart, "The image is consistent. Run it again to go on."},
	{errMergedInPart, "The chain opens and shows the same. Run the command again to go on."},
	{errSiblings, "Nothing was changed. Copy the chain into one image with vhdxctl convert instead; --force merges all the same."},
	{errSiblingUnknown, "Nothing was changed. Move it elsewhere if it is none; --force merges all the same."},
	{errChildren, "Leave --remove away: the child may stay as it is once it is merged. Or merge those into it first."},
	{errChildUnknown, "Move it elsewhere if it is none, or leave --remove away."},
	{errNoParent, "It stands alone; vhdxctl chain shows what an image stands on."},
	{errForeign, "If it is a raw disk all the same, say -f raw. Otherwise: qemu-img convert -O vhdx -o subformat=dynamic,block_state_zero=off SOURCE TARGET.vhdx"},
	{errNotAttached, "vhdxctl detach, without an argument, lists what is."},
	{blockdev.ErrBusy, "Unmount it, or close what has it open. It is still there, and served."},
	{pool.ErrUnsafeShare, "Mount it with safe options, or, if nothing else uses the pool meanwhile, say --allow-unsafe."},
	{pool.ErrNotAPool, "Give the directory that the driver has as its --pool; on a share, make sure that it is mounted."},
	{errSnapshotLeft, "The driver deletes it a day after it was taken."},
	{errResumeInUse, "Take a snapshot of it, and export that: it stays the same until the copy is whole."},
	{control.ErrUnreachable, "Nothing was copied. Run this where the node can be reached, in the controller's pod for example, or take a snapshot through Kubernetes and export that."},
	{pool.ErrConflict, "Choose another name: --name."},
	{pool.ErrNoSpace, "If the driver promises more than there is, say so here too: --overcommit."},
	{pool.ErrInUse, "Nothing was changed. Close it there first, then run this again."},
	{vhdx.ErrParentRefused, "If the parent is rightly elsewhere, say where parents may be: --parents DIR."},
	{vhdx.ErrParentMissing, "Put the parent where the image says it is, or say where parents may be: --parents DIR."},
	{vhdx.ErrParentMismatch, "The parent has been written to since the child was made, or is another image. Restore it from a backup; nothing was changed."},
	{vhdx.ErrInUse, "Close it there first (a staged volume: delete its pods, or drain the node), then run this again."},
	{vhdx.ErrCorrupt, "Nothing was changed. To see what can be mended: vhdxctl check --dry-run PATH. Keep a copy of the file before any repair."},
	{vhdx.ErrNotVHDX, "A raw disk: vhdxctl convert -f raw SOURCE TARGET.vhdx. Another format: qemu-img convert -O vhdx -o subformat=dynamic,block_state_zero=off SOURCE TARGET.vhdx"},
	{vhdx.ErrUnsupported, "Nothing was changed. Open it with the software that wrote it."},
	{syscall.ENOSPC, "A fixed image takes all of its space at once. Free some, or leave out --fixed: a dynamic image takes space as it is written."},
	{syscall.EDQUOT, "A fixed image takes all of its space at once. Raise the quota, or leave out --fixed."},
	{syscall.EFBIG, "The filesystem cannot hold a file of that size: a VHDX takes only what it needs, and XFS holds larger files."},
	{syscall.EROFS, "The filesystem is mounted read-only."},
	{fs.ErrExist, "Nothing was replaced. Choose another name, or remove the file first."},
	{fs.ErrPermission, "Run it as a user who may read and write the file and its directory."},
	{context.Canceled, "Nothing was left behind."},
}

func advice(err error) string {
	for _, a := range advices {
		if errors.Is(err, a.is) {
			return a.advice
		}
	}
	return ""
}
