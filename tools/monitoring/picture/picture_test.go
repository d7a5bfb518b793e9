package main

import (
	"image/png"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Every panel of the dashboard is drawn, whatever its data looks like.
func TestDraw(t *testing.T) {
	panels, err := readDashboard("../../../deploy/grafana/csi-driver-vhdx.json")
	if err != nil {
		t.Fatal(err)
	}
	from := time.Unix(1_800_000_000, 0)
	to := from.Add(5 * time.Minute)
	var filled []drawn
	for i, p := range panels {
		d := drawn{panel: p}
		for n := range i % 20 { // one of them has none
			l := line{name: "a name that is too long for any legend " + string(rune('a'+n))}
			for s := from; s.Before(to); s = s.Add(step) {
				if s.Second()%7 > 1 || n == 2 { // with holes, and without
					l.points = append(l.points, point{float64(s.Unix()), 1e3 * math.Abs(math.Sin(float64(s.Unix())/40)+float64(n))})
				}
			}
			d.lines = append(d.lines, l)
		}
		filled = append(filled, d)
	}
	out := filepath.Join(t.TempDir(), "x.png")
	if err := drawPicture(out, "test", filled, from, to); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil || img.Bounds().Dx() < 1000 || img.Bounds().Dy() < 1000 {
		t.Errorf("%v, %v", img.Bounds(), err)
	}
}

func TestInUnit(t *testing.T) {
	for _, tt := range []struct {
		unit string
		v    float64
		want string
	}{
		{"bytes", 1536, "1.5 KiB"}, {"bytes", 64 << 30, "64 GiB"}, {"Bps", 123e6, "123 MB/s"}, {"s", 0.0042, "4.2 ms"}, {"s", 0, "0 s"},
		{"percentunit", 0.125, "12.5 %"}, {"iops", 250, "250 io/s"}, {"none", 3, "3"},
	} {
		if got := inUnit(tt.unit, tt.v); got != tt.want {
			t.Errorf("%s of %v: %q, want %q", tt.unit, tt.v, got, tt.want)
		}
	}
}
