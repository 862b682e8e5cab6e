DISCLAIMER = "drawn"
