package main

import (
	"bufio"
	"context"
	_ "embed" // the page
	"errors"
	"fmt"
	"html/template"
	"io"
	"math"
	"path/filepath"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

//go:embed map.html
var mapPage string

// mapCells is how many cells a map has at most: enough to see where blocks
// lie, few enough for any browser, whatever the disk's size.
const mapCells = 6144

// mapModel is what the page draws.
type mapModel struct {
	Name, Path  string
	Type        string
	VirtualSize string
	FileSize    string
	BlockSize   string
	Allocated   string
	Data        string
	Sparse      string
	Layers      []mapLayer
	Disk        grid
	File        grid
}

// mapLayer is a layer's share.
type mapLayer struct {
	Name    string  `json:"name"`
	Type    string  `json:"type"`
	Bytes   int64   `json:"bytes"`
	Text    string  `json:"text"`
	Percent float64 `json:"percent"` // of the disk
}

// grid is a range of bytes in cells of one size.
type grid struct {
	Size int64  `json:"size"` // of the whole range
	Cell int64  `json:"cell"` // bytes of a cell
	Kind string `json:"kind"`
	// Cells has, for each cell, pairs of a class and how many thousandths of
	// the cell are of it, the largest first. In the grid of the disk a class
	// not below 0 is a layer; in that of the file it is a place on the disk, in
	// thousandths.
	Cells [][]int64 `json:"cells"`
}

// The classes that are no layer and no place.
const (
	classHole     = -1 // has space that is a hole
	classZero     = -2 // ZERO, UNMAPPED or UNDEFINED
	classHeader   = -3
	classLog      = -4
	classMetadata = -5
	classBAT      = -6
	classBitmap   = -7
	classRegion   = -8 // of an unknown kind
)

// gridder collects what cells hold.
type gridder struct {
	grid
	sums []map[int64]int64
}

func newGridder(size, unit int64, kind string) *gridder {
	g := &gridder{grid: grid{Size: size, Kind: kind}}
	g.Cell = max(unit, 1)
	for size/g.Cell >= mapCells {
		g.Cell *= 2
	}
	g.sums = make([]map[int64]int64, (size+g.Cell-1)/g.Cell)
	return g
}

// add counts a range as of a class. Of the place on the disk, each cell has
// its own part.
func (g *gridder) add(off, length int64, class func(off int64) int64) {
	for end := min(off+length, g.Size); off < end; {
		i := off / g.Cell
		n := min(end-off, (i+1)*g.Cell-off)
		if g.sums[i] == nil {
			g.sums[i] = map[int64]int64{}
		}
		g.sums[i][class(off)] += n
		off += n
	}
}

func fixedClass(class int64) func(int64) int64 { return func(int64) int64 { return class } }

// finish turns sums into the largest two shares of each cell, and nothing for
// a cell without any.
func (g *gridder) finish() grid {
	g.Cells = make([][]int64, len(g.sums))
	for i, sums := range g.sums {
		size := min(g.Cell, g.Size-int64(i)*g.Cell)
		var cell []int64
		for range 2 {
			best, most := int64(0), int64(0)
			for class, n := range sums {
				if n > most || n == most && class > best {
					best, most = class, n
				}
			}
			if most == 0 {
				break
			}
			delete(sums, best)
			cell = append(cell, best, int64(math.Ceil(float64(most)/float64(size)*1000)))
		}
		g.Cells[i] = cell
	}
	return g.grid
}

// mapHTML writes the page.
func (a *app) mapHTML(ctx context.Context, im *vhdx.Image, path, to string) error {
	m, err := newMapModel(ctx, im, path)
	if err != nil {
		return err
	}
	page, err := template.New("map").Parse(mapPage)
	if err != nil {
		return err
	}
	if to == "-" {
		return page.Execute(a.out, m)
	}
	d, err := vhdx.NewDraft(to)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(d.File())
	err = page.Execute(w, m)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = d.Publish(true)
	}
	if err = errors.Join(err, d.Close()); err != nil {
		return err
	}
	a.print(struct {
		Path string `json:"path"`
		HTML string `json:"html"`
	}{path, to}, func(w io.Writer) { fmt.Fprintf(w, "%s: map of %s written\n", to, path) })
	return nil
}

func newMapModel(ctx context.Context, im *vhdx.Image, path string) (*mapModel, error) {
	info := im.Info()
	m := &mapModel{
		Name: filepath.Base(path), Path: path, Type: kindOfImage(info), VirtualSize: formatSize(info.VirtualSize),
		FileSize: formatSize(info.FileSize), BlockSize: formatSize(info.BlockSize),
		Allocated: fmt.Sprintf("%d of %d", info.AllocatedBlocks, info.PayloadBlocks),
	}
	for i, l := range im.Layers() {
		name := relativeTo(filepath.Dir(path), l.File)
		if i == 0 {
			name = m.Name
		}
		m.Layers = append(m.Layers, mapLayer{Name: name, Type: kindOfImage(l.Info)})
	}
	disk := newGridder(info.VirtualSize, min(info.BlockSize, 1<<20), "disk")
	var data, sparse int64
	err := eachEntry(im, 0, info.VirtualSize, func(e mapEntry) error {
		switch {
		case e.Data:
			disk.add(e.Start, e.Length, fixedClass(int64(e.Depth)))
			m.Layers[e.Depth].Bytes += e.Length
			data += e.Length
		case e.Offset != nil:
			disk.add(e.Start, e.Length, fixedClass(classHole))
			sparse += e.Length
		case e.Present:
			disk.add(e.Start, e.Length, fixedClass(classZero))
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	for i := range m.Layers {
		l := &m.Layers[i]
		l.Text, l.Percent = formatSize(l.Bytes), 100*float64(l.Bytes)/float64(info.VirtualSize)
	}
	m.Data, m.Sparse, m.Disk = formatSize(data), formatSize(sparse), disk.finish()
	m.File, err = fileGrid(ctx, path, info)
	return m, err
}

// fileGrid shows what lies where in the image's own file.
func fileGrid(ctx context.Context, path string, info vhdx.Info) (grid, error) {
	f, err := openFile(path, false)
	if err != nil {
		return grid{}, err
	}
	defer f.Close()
	d, err := vhdx.NewDump(ctx, f)
	if err != nil {
		return grid{}, err
	}
	g := newGridder(info.FileSize, 1<<20, "file")
	g.add(0, 1<<20, fixedClass(classHeader))
	log := d.Log()
	g.add(log.Offset, log.Length, fixedClass(classLog))
	tables, err := d.Regions()
	if err != nil {
		return grid{}, err
	}
	for _, t := range tables {
		if !t.Used {
			continue
		}
		for _, r := range t.Regions {
			class, ok := map[string]int64{"BAT region": classBAT, "metadata region": classMetadata}[r.Name]
			if !ok {
				class = classRegion
			}
			g.add(int64(r.Offset), int64(r.Length), fixedClass(class))
		}
	}
	err = d.BAT(0, func(e vhdx.DumpedEntry) bool {
		switch {
		case e.Offset == 0:
		case e.Block < 0:
			g.add(e.Offset, 1<<20, fixedClass(classBitmap))
		default:
			place := e.Block * 1000 / max(info.PayloadBlocks, 1)
			g.add(e.Offset, info.BlockSize, fixedClass(place))
		}
		return true
	})
	return g.finish(), err
}
