package main

import (
	"github.com/spf13/cobra"
)

func (a *app) growCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "grow PATH SIZE",
		Short: "Make an image's disk larger",
		Long: `Make the virtual disk of an image larger: to SIZE, or by it with a plus sign.
It is resize without its options, for scripts that must never make a disk smaller.`,
		Example: `  vhdxctl grow disk.vhdx 20G
  vhdxctl grow disk.vhdx +512M`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := a.resize(args[0], args[1], resizeOptions{})
			if err != nil {
				return err
			}
			a.print(r, r.print)
			return nil
		},
	}
}
