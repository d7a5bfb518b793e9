package vhdx

import (
	"container/heap"
	"math/bits"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// freeList holds ranges of the file in whole MiB, neighbours joined. Putting
// one in and taking one out cost the logarithm of their number. The zero
// value is empty.
//
// Ranges are sorted into classes by the power of two in their length: any
// range of its class or a higher one has room for a block, whose size is a
// power of two itself. Of the lowest class with room the lowest range is
// taken, so that what is left over stays large and the file short.
type freeList struct {
	lengths map[int64]int64 // by first byte
	starts  map[int64]int64 // by the end
	classes [64]offsets     // first bytes; some name ranges that are no more
	queued  int             // in all classes
	total   int64           // bytes
}

// offsets is a heap with the lowest on top.
type offsets []int64

func (o offsets) Len() int           { return len(o) }
func (o offsets) Less(i, j int) bool { return o[i] < o[j] }
func (o offsets) Swap(i, j int)      { o[i], o[j] = o[j], o[i] }
func (o *offsets) Push(x any)        { *o = append(*o, x.(int64)) }
func (o *offsets) Pop() any {
	last := len(*o) - 1
	x := (*o)[last]
	*o = (*o)[:last]
	return x
}

func freeClass(length int64) int { return bits.Len64(uint64(length/ondisk.MiB)) - 1 }

// put adds a range that overlaps none of the list and returns what has become
// of it and its neighbours.
func (f *freeList) put(e extent) extent {
	if f.lengths == nil {
		f.lengths, f.starts = map[int64]int64{}, map[int64]int64{}
	}
	if start, ok := f.starts[e.off]; ok {
		e = extent{start, e.end() - start}
		f.drop(start)
	}
	if length, ok := f.lengths[e.end()]; ok {
		f.drop(e.end())
		e.length += length
	}
	f.lengths[e.off], f.starts[e.end()] = e.length, e.off
	f.total += e.length
	f.enqueue(e)
	return e
}

// drop removes the range that begins at off. Its place in the class is found
// stale later.
func (f *freeList) drop(off int64) {
	length := f.lengths[off]
	delete(f.lengths, off)
	delete(f.starts, off+length)
	f.total -= length
}

func (f *freeList) enqueue(e extent) {
	if f.queued > 2*len(f.lengths)+64 {
		f.requeue()
		return
	}
	heap.Push(&f.classes[freeClass(e.length)], e.off)
	f.queued++
}

// requeue leaves out what is stale.
func (f *freeList) requeue() {
	for i := range f.classes {
		f.classes[i] = f.classes[i][:0]
	}
	for off, length := range f.lengths {
		c := &f.classes[freeClass(length)]
		*c = append(*c, off)
	}
	for i := range f.classes {
		heap.Init(&f.classes[i])
	}
	f.queued = len(f.lengths)
}

// take cuts size bytes, whole MiB, off the lower end of a range. Of ranges
// that are shorter than twice a size which is no power of two it looks at one
// only, and may miss another with room.
func (f *freeList) take(size int64) (int64, bool) {
	for class := freeClass(size); class < len(f.classes); class++ {
		off, length, ok := f.lowest(class)
		if !ok || length < size {
			continue
		}
		f.drop(off)
		if length > size {
			f.put(extent{off + size, length - size})
		}
		return off, true
	}
	return 0, false
}

// takeLowest cuts size bytes, a power of two of MiB, off the lowest range with
// room, if it ends at or below limit.
func (f *freeList) takeLowest(size, limit int64) (int64, bool) {
	best := extent{off: limit}
	for class := freeClass(size); class < len(f.classes); class++ {
		if off, length, ok := f.lowest(class); ok && off < best.off {
			best = extent{off, length}
		}
	}
	if best.off+size > limit {
		return 0, false
	}
	f.drop(best.off)
	if best.length > size {
		f.put(extent{best.off + size, best.length - size})
	}
	return best.off, true
}

// lowest returns the lowest range of a class.
func (f *freeList) lowest(class int) (off, length int64, ok bool) {
	c := &f.classes[class]
	for len(*c) > 0 {
		off = (*c)[0]
		if length, ok = f.lengths[off]; ok && freeClass(length) == class {
			return off, length, true
		}
		heap.Pop(c)
		f.queued--
	}
	return 0, 0, false
}
