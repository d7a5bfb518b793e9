package main

import (
	"fmt"
	"image/color"
	"os"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// Sizes, in points. Grafana's grid has 24 columns.
const (
	column   = 34.0
	row      = 17.0
	gap      = 3.0
	headline = 26.0
	legendAt = 9.5 // a line of a legend
)

var (
	paper = color.RGBA{0xf4, 0xf5, 0xf5, 0xff}
	card  = color.RGBA{0xff, 0xff, 0xff, 0xff}
	ink   = color.RGBA{0x24, 0x29, 0x2e, 0xff}
	faint = color.RGBA{0xd8, 0xda, 0xdc, 0xff}
)

// colors of the lines, in the order of their names.
var colors = []color.RGBA{
	{0x37, 0x87, 0x2d, 0xff}, {0xe0, 0x95, 0x0b, 0xff}, {0x1f, 0x60, 0xc4, 0xff}, {0xc4, 0x16, 0x2a, 0xff}, {0x8f, 0x3b, 0xb8, 0xff},
	{0x00, 0x8b, 0x8b, 0xff}, {0xb8, 0x5c, 0x2e, 0xff}, {0x6b, 0x8e, 0x23, 0xff}, {0x5a, 0x67, 0x78, 0xff}, {0xd8, 0x5a, 0x9a, 0xff},
}

type painter struct {
	draw.Canvas
	height   vg.Length
	from, to time.Time
}

// drawPicture puts all panels where the dashboard has them, into a PNG file.
func drawPicture(out, title string, panels []drawn, from, to time.Time) error {
	rows := 0.0
	for _, p := range panels {
		rows = max(rows, p.GridPos.Y+p.GridPos.H)
	}
	w, h := vg.Length(24*column), vg.Length(headline+rows*row)
	img := vgimg.NewWith(vgimg.UseWH(w, h), vgimg.UseDPI(130))
	c := &painter{Canvas: draw.New(img), height: h, from: from, to: to}
	c.box(0, 0, w, h, paper)
	c.text(title, 6, 18, 12, draw.XLeft, ink)
	for _, p := range panels {
		c.panel(p)
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	if _, err := (vgimg.PngCanvas{Canvas: img}).WriteTo(f); err != nil {
		f.Close()
		return fmt.Errorf("write %s: %w", out, err)
	}
	return f.Close()
}

func (c *painter) box(x, y, w, h vg.Length, fill color.Color) {
	c.FillPolygon(fill, []vg.Point{{X: x, Y: c.height - y}, {X: x + w, Y: c.height - y}, {X: x + w, Y: c.height - y - h}, {X: x, Y: c.height - y - h}})
}

// text writes with its baseline at y from the top.
func (c *painter) text(s string, x, y, size vg.Length, align text.XAlignment, fill color.Color) {
	st := draw.TextStyle{Color: fill, Font: font.From(plot.DefaultFont, size), Handler: plot.DefaultTextHandler, XAlign: align}
	st.Font.Variant = "Sans"
	c.FillText(st, vg.Point{X: x, Y: c.height - y}, s)
}

func (c *painter) panel(p drawn) {
	x, y := vg.Length(p.GridPos.X*column), vg.Length(headline+p.GridPos.Y*row)
	w, h := vg.Length(p.GridPos.W*column), vg.Length(p.GridPos.H*row)
	if p.Type == "row" {
		c.text(p.Title, x+6, y+12, 10, draw.XLeft, ink)
		return
	}
	c.box(x+gap, y+gap, w-2*gap, h-2*gap, card)
	c.text(p.Title, x+gap+6, y+gap+12, 9, draw.XLeft, ink)
	if len(p.lines) == 0 {
		c.text("no data", x+w/2, y+h/2, 9, draw.XCenter, faint)
		return
	}
	if p.Type == "stat" {
		c.stat(p, x+gap, y+gap+14, w-2*gap, h-2*gap-14)
		return
	}
	below := entries(p.lines, w-2*gap-12)
	top, bottom := vg.Length(16), vg.Length(len(below))*legendAt+4
	c.chart(p, x+gap+4, y+gap+top, w-2*gap-8, h-2*gap-top-bottom)
	for i, l := range below {
		at := x + gap + 6
		for _, e := range l {
			c.box(at, y+h-gap-bottom+vg.Length(i)*legendAt+2.5, 7, 2, e.color)
			c.text(e.name, at+9, y+h-gap-bottom+vg.Length(i)*legendAt+6, 6.5, draw.XLeft, ink)
			at += e.width
		}
	}
}

// stat writes the last value of each series.
func (c *painter) stat(p drawn, x, y, w, h vg.Length) {
	lines := p.lines[:min(len(p.lines), 8)]
	columns := min(len(lines), 4)
	rows := (len(lines) + columns - 1) / columns
	for i, l := range lines {
		value := l.points[len(l.points)-1].v
		cw, rh := w/vg.Length(columns), h/vg.Length(rows)
		cx, cy := x+cw*(vg.Length(i%columns)+0.5), y+rh*vg.Length(i/columns)
		big := min(rh*0.5, 20)
		c.text(inUnit(p.FieldConfig.Defaults.Unit, value), cx, cy+rh*0.55, big, draw.XCenter, colors[0])
		c.text(l.name, cx, cy+rh*0.55+9, 6.5, draw.XCenter, ink)
	}
}

func (c *painter) chart(p drawn, x, y, w, h vg.Length) {
	g := plot.New()
	g.BackgroundColor = card
	g.X.Min, g.X.Max = float64(c.from.Unix()), float64(c.to.Unix())
	g.X.Tick.Marker = plot.TimeTicks{Format: "15:04:05"}
	g.Y.Tick.Marker = ticks{p.FieldConfig.Defaults.Unit}
	for _, a := range []*plot.Axis{&g.X, &g.Y} {
		a.LineStyle.Color, a.Tick.LineStyle.Color, a.Tick.Label.Color = faint, faint, ink
		a.Tick.Label.Font.Size, a.Tick.Label.Font.Variant = 6, "Sans"
		a.Tick.Length, a.Padding = 2, 1
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = nil, color.RGBA{0xec, 0xed, 0xee, 0xff}
	g.Add(grid)
	highest := 0.0
	for i, l := range p.lines {
		for _, part := range parts(l.points) {
			drawnLine, dots, err := plotter.NewLinePoints(part)
			if err != nil {
				continue // no finite point
			}
			drawnLine.Color, drawnLine.Width = colors[i%len(colors)], 0.9
			g.Add(drawnLine)
			if len(part) == 1 { // a line of one point is none
				dots.Color, dots.Radius, dots.Shape = colors[i%len(colors)], 0.8, draw.CircleGlyph{}
				g.Add(dots)
			}
			for _, xy := range part {
				highest = max(highest, xy.Y)
			}
		}
	}
	g.Y.Min, g.Y.Max = 0, max(highest*1.08, 1e-9)
	if highest == 0 {
		g.Y.Max = 1
	}
	g.Draw(draw.Canvas{Canvas: c.Canvas.Canvas, Rectangle: vg.Rectangle{
		Min: vg.Point{X: x, Y: c.height - y - h}, Max: vg.Point{X: x + w, Y: c.height - y},
	}})
}

// parts cuts a series where there was no data.
func parts(points []point) []plotter.XYs {
	var all []plotter.XYs
	for i, p := range points {
		if i == 0 || p.t-points[i-1].t > 2.5*step.Seconds() {
			all = append(all, nil)
		}
		last := &all[len(all)-1]
		*last = append(*last, plotter.XY{X: p.t, Y: p.v})
	}
	return all
}
