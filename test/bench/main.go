package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/fuseloop"
)

func main() {
	helper.RunIfHelper(fuseloop.Commands()...)
	file := flag.String("file", "", "")
	threads := flag.Bool("threads", false, "")
	flag.Parse()
	st, _ := os.Stat(*file)
	im, err := devtest.NewFileImage(*file, st.Size(), 512, 512)
	if err != nil {
		panic(err)
	}
	a := fuseloop.New(fuseloop.Options{NoRing: *threads, Note: func(id, s string) { fmt.Fprintln(os.Stderr, id, s) }})
	d, err := a.Attach(context.Background(), blockdev.Config{ID: "bench", Image: im})
	if err != nil {
		panic(err)
	}
	fmt.Println(d.Path())
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt)
	<-c
	fmt.Println(d.Detach(context.Background()), im.Close())
}
