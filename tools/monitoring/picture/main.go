// Command picture draws the Grafana dashboard with the data of a run, without
// Grafana: a Prometheus scrapes the driver's pods while a command runs in their
// cluster; then every panel's queries are asked as Grafana would ask them, and
// drawn where the dashboard has the panel.
//
//	picture -dashboard FILE.json -out FILE.png COMMAND [ARG...]
//
// KUBECONFIG names the cluster. It takes `prometheus` and `kubectl` of the PATH.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

const (
	scrapeEvery = 2 * time.Second
	// rateOver is what stands for $__rate_interval: four scrapes, as Grafana has it.
	rateOver = 4 * scrapeEvery
)

func main() {
	dashboard := flag.String("dashboard", "", "the dashboard, as Grafana imports it")
	out := flag.String("out", "dashboard.png", "the picture")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *dashboard, *out, flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "picture: %v\n", err)
		os.Exit(1) //nolint:gocritic // the context needs no end any more
	}
}

func run(ctx context.Context, dashboard, out string, command []string) error {
	if dashboard == "" || len(command) == 0 {
		return errors.New("give -dashboard and a command that makes the load")
	}
	panels, err := readDashboard(dashboard)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "picture-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := startPrometheus(ctx, dir)
	if err != nil {
		return err
	}
	defer p.stop()
	from := time.Now()
	load := exec.CommandContext(ctx, command[0], command[1:]...)
	load.Stdout, load.Stderr = os.Stderr, os.Stderr
	if err := load.Run(); err != nil {
		return fmt.Errorf("the load: %w", err)
	}
	// What is shown of now is of a time when there was something to show.
	to, err := p.busyUntil(ctx, from, time.Now())
	if err != nil {
		return err
	}
	filled := make([]drawn, len(panels))
	for i, pan := range panels {
		if filled[i], err = p.fill(ctx, pan, from, to); err != nil {
			return err
		}
	}
	title := fmt.Sprintf("csi-driver-vhdx: %s, %s", from.UTC().Format("2006-01-02 15:04 MST"), to.Sub(from).Round(time.Second))
	return drawPicture(out, title, filled, from, to)
}
