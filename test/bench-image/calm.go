package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

const (
	calmLook = 300 * time.Millisecond
	calmIdle = 0.85
)

// calm waits until the processors have been idle for a moment, at most
// patience: on a machine with other work a figure means nothing.
func calm(ctx context.Context, patience time.Duration) error {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		idle, all, err := processors()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(calmLook):
		}
		idle2, all2, err := processors()
		if err != nil {
			return err
		}
		if (idle2-idle)/(all2-all) >= calmIdle {
			return nil
		}
	}
	return nil
}

// processors reads the first line of /proc/stat: user, nice, system, idle,
// iowait, irq, softirq, steal.
func processors() (idle, all float64, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	var v [8]float64
	if _, err := fmt.Sscanf(string(b), "cpu %f %f %f %f %f %f %f %f", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6], &v[7]); err != nil {
		return 0, 0, fmt.Errorf("read /proc/stat: %w", err)
	}
	for _, x := range v {
		all += x
	}
	return v[3] + v[4], all, nil
}
