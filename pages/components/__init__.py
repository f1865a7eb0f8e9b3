"""Parts of pages: what more than one page shows or asks for."""
